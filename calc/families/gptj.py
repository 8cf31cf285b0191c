"""GPT-J: attention and MLP side by side behind one norm, positions turn pairs of a part of each head."""

from calc.architecture import Architecture, Dropouts, Layer
from calc.errors import ConfigError
from calc.kinds import Activation, LayerKind, ModelKind, Norm, Norms, Wiring

from .fields import Fields, divides


def gptj(fields: Fields) -> Architecture:
    """GPTJForCausalLM."""
    hidden_size = fields.size("n_embd", "hidden_size", default=4096)
    num_heads = fields.size("n_head", "num_attention_heads", default=16)
    divides("n_head", num_heads, "n_embd", hidden_size)
    head_dim = hidden_size // num_heads
    rotary_dim = fields.size("rotary_dim", default=64)
    if rotary_dim > head_dim or rotary_dim % 2:
        raise ConfigError("model.rotary_dim", rotary_dim, f"should be even, and at most {head_dim}, the size of a head")
    layer = Layer(
        kind=LayerKind(
            wiring=Wiring.GPTJ,
            activation=fields.activation("activation_function", default=Activation.GELU_NEW),
            norm=Norm.LAYER,
            norms=Norms(before_attention="ln_1"),
            mlp_bias=True,
            parallel=True,
            returns_weights=True,
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        intermediate_size=fields.optional_size("n_inner", default=None) or 4 * hidden_size,
    )
    return Architecture(
        model_type="gptj",
        kind=ModelKind(
            wiring=Wiring.GPTJ, norm=Norm.LAYER, learned_positions=True, head_bias=True, writes_attention_out=True
        ),
        vocab_size=fields.size("vocab_size", default=50400),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("n_positions", "max_position_embeddings", default=2048),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        layers=((layer, fields.size("n_layer", "num_hidden_layers", default=28)),),
        dropouts=Dropouts(
            embedding=fields.probability("embd_pdrop", default=0.0),
            attention=fields.probability("attn_pdrop", default=0.0),
            residual=fields.probability("resid_pdrop", default=0.0),
        ),
    )
