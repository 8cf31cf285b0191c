"""Bloom: ALiBi, a norm behind the embeddings, biases everywhere."""

from calc.architecture import Architecture, Dropouts, Layer
from calc.kinds import Activation, LayerKind, ModelKind, Norm, Wiring

from .fields import Fields, divides

MLP_EXPANSION = 4


def bloom(fields: Fields) -> Architecture:
    """BloomForCausalLM."""
    for name in ("apply_residual_connection_post_layernorm", "slow_but_exact"):
        fields.only(name, False)
    hidden_size = fields.size("n_embed", "hidden_size", default=64)
    num_heads = fields.size("n_head", "num_attention_heads", default=8)
    divides("n_head", num_heads, "hidden_size", hidden_size)
    layer = Layer(
        kind=LayerKind(
            wiring=Wiring.BLOOM,
            activation=Activation.GELU_PYTORCH_TANH,
            norm=Norm.LAYER,
            query_key_value_bias=True,
            output_bias=True,
            mlp_bias=True,
            returns_weights=True,
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=MLP_EXPANSION * hidden_size,
    )
    return Architecture(
        model_type="bloom",
        kind=ModelKind(wiring=Wiring.BLOOM, norm=Norm.LAYER, writes_attention_out=True),
        vocab_size=fields.size("vocab_size", default=250880),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("seq_length", default=2048),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        layers=((layer, fields.size("n_layer", "num_hidden_layers", default=2)),),
        dropouts=Dropouts(
            attention=fields.probability("attention_dropout", default=0.0),
            residual=fields.probability("hidden_dropout", default=0.0),
        ),
    )
