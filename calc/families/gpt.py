"""GPT-2: learned positions, layer norms before each part, biases everywhere."""

from calc.architecture import (
    Activation,
    Architecture,
    CacheHolder,
    Dropouts,
    Layer,
    LayerKind,
    ModelKind,
    Norm,
    Norms,
    Wiring,
)

from .fields import Fields, divides


def gpt2(fields: Fields) -> Architecture:
    """GPT2LMHeadModel."""
    fields.refuse("add_cross_attention", "cross attention is not supported yet")
    fields.refuse("reorder_and_upcast_attn", "upcast attention is not supported yet")
    hidden_size = fields.size("n_embd", "hidden_size", default=768)
    num_heads = fields.size("n_head", "num_attention_heads", default=12)
    divides("n_head", num_heads, "n_embd", hidden_size)
    kind = LayerKind(
        wiring=Wiring.GPT2,
        activation=fields.activation("activation_function", default=Activation.GELU_NEW),
        norm=Norm.LAYER,
        norms=Norms(before_attention="ln_1", before_mlp="ln_2"),
        query_key_value_bias=True,
        output_bias=True,
        mlp_bias=True,
        fp32_softmax=False,
    )
    layer = Layer(
        kind=kind,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.optional_size("n_inner", default=None) or 4 * hidden_size,
    )
    return Architecture(
        model_type="gpt2",
        kind=ModelKind(wiring=Wiring.GPT2, norm=Norm.LAYER, learned_positions=True, cache_holder=CacheHolder.NOBODY),
        vocab_size=fields.size("vocab_size", default=50257),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("n_positions", "max_position_embeddings", default=1024),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        layers=((layer, fields.size("n_layer", "num_hidden_layers", default=12)),),
        dropouts=Dropouts(
            embedding=fields.probability("embd_pdrop", default=0.1),
            attention=fields.probability("attn_pdrop", default=0.1),
            residual=fields.probability("resid_pdrop", default=0.1),
        ),
    )
