"""GPT-NeoX and Pythia: attention and MLP side by side, positions turn a part of each head."""

from calc.architecture import Architecture, Dropouts, Layer
from calc.kinds import PARTIAL_ROTARY, Activation, LayerKind, ModelKind, Norm, Wiring

from .fields import Fields, divides


def gpt_neox(fields: Fields) -> Architecture:
    """GPTNeoXForCausalLM."""
    hidden_size = fields.size("hidden_size", default=6144)
    num_heads = fields.size("num_attention_heads", default=64)
    divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    head_dim = hidden_size // num_heads
    bias = fields.flag("attention_bias", default=True)
    dropout = fields.probability("hidden_dropout", default=0.0)
    layer = Layer(
        kind=LayerKind(
            wiring=Wiring.GPT_NEOX,
            activation=fields.activation("hidden_act", default=Activation.GELU),
            norm=Norm.LAYER,
            query_key_value_bias=bias,
            output_bias=bias,
            mlp_bias=True,
            rotary=PARTIAL_ROTARY,
            query_key_by_head=True,
            parallel=fields.flag("use_parallel_residual", default=True),
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=head_dim,
        rotary_dim=fields.rotary_dim(head_dim, "rotary_pct", default=0.25),
        intermediate_size=fields.size("intermediate_size", default=24576),
    )
    return Architecture(
        model_type="gpt_neox",
        kind=ModelKind(wiring=Wiring.GPT_NEOX, norm=Norm.LAYER, rotary=PARTIAL_ROTARY),
        vocab_size=fields.size("vocab_size", default=50432),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=2048),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        layers=((layer, fields.size("num_hidden_layers", default=44)),),
        dropouts=Dropouts(
            embedding=dropout, attention=fields.probability("attention_dropout", default=0.0), residual=dropout
        ),
    )
