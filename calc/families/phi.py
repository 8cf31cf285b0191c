"""Phi-1, 1.5 and 2: attention and MLP read one norm's output side by side, positions turn a part of each head."""

from calc.architecture import Architecture, Dropouts, Layer
from calc.kinds import PHI_ROTARY, Activation, LayerKind, ModelKind, Norm, Norms, Wiring

from .fields import Fields, divides


def phi(fields: Fields) -> Architecture:
    """PhiForCausalLM."""
    fields.only("qk_layernorm", False)
    hidden_size = fields.size("hidden_size", default=2048)
    num_heads = fields.size("num_attention_heads", default=32)
    divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    num_key_value_heads = fields.size("num_key_value_heads", default=num_heads)
    divides("num_key_value_heads", num_key_value_heads, "num_attention_heads", num_heads)
    head_dim = hidden_size // num_heads
    layer = Layer(
        kind=LayerKind(
            wiring=Wiring.PHI,
            activation=fields.activation("hidden_act", default=Activation.GELU_NEW),
            norm=Norm.LAYER,
            norms=Norms(before_attention="input_layernorm"),
            query_key_value_bias=True,
            output_bias=True,
            mlp_bias=True,
            rotary=PHI_ROTARY,
            query_key_by_head=True,
            parallel=True,
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        rotary_dim=fields.rotary_dim(head_dim, "partial_rotary_factor", default=0.5),
        intermediate_size=fields.size("intermediate_size", default=8192),
    )
    return Architecture(
        model_type="phi",
        kind=ModelKind(wiring=Wiring.PHI, norm=Norm.LAYER, rotary=PHI_ROTARY, head_bias=True),
        vocab_size=fields.size("vocab_size", default=51200),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=2048),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        layers=((layer, fields.size("num_hidden_layers", default=24)),),
        dropouts=Dropouts(
            embedding=fields.probability("embd_pdrop", default=0.0),
            attention=fields.probability("attention_dropout", default=0.0),
            residual=fields.probability("resid_pdrop", default=0.0),
        ),
    )
