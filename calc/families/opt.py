"""OPT: learned positions, ReLU, biases everywhere."""

from calc.architecture import Architecture, Dropouts, Layer
from calc.kinds import Activation, LayerKind, ModelKind, Norm, Norms, Wiring

from .fields import Fields, divides


def opt(fields: Fields) -> Architecture:
    """OPTForCausalLM."""
    hidden_size = fields.size("hidden_size", default=768)
    num_heads = fields.size("num_attention_heads", default=12)
    divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    for name, value in (OTHER_MAKES | {"word_embed_proj_dim": hidden_size}).items():
        fields.only(name, value)
    bias = fields.flag("enable_bias", default=True)
    layer = Layer(
        kind=LayerKind(
            wiring=Wiring.OPT,
            activation=fields.activation("activation_function", default=Activation.RELU),
            norm=Norm.LAYER,
            norms=Norms(before_attention="self_attn_layer_norm", before_mlp="final_layer_norm"),
            query_key_value_bias=bias,
            output_bias=bias,
            mlp_bias=bias,
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.size("ffn_dim", default=3072),
    )
    return Architecture(
        model_type="opt",
        kind=ModelKind(wiring=Wiring.OPT, norm=Norm.LAYER, learned_positions=True),
        vocab_size=fields.size("vocab_size", default=50272),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=2048),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        layers=((layer, fields.size("num_hidden_layers", default=12)),),
        dropouts=Dropouts(
            attention=fields.probability("attention_dropout", default=0.0),
            residual=fields.probability("dropout", default=0.1),
        ),
    )


OTHER_MAKES = {
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "layer_norm_elementwise_affine": True,
    "layerdrop": 0.0,
}
"""Fields of which one value is modelled; opt-350m has others."""
