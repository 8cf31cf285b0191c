"""GPT-2 and GPT-BigCode: learned positions, layer norms before each part, biases everywhere."""

from typing import Any

from calc.architecture import Architecture, Dropouts, Layer
from calc.kinds import Activation, CacheHolder, LayerKind, ModelKind, Norm, Norms, Softmax, Wiring

from .fields import Fields, divides


def gpt2(fields: Fields) -> Architecture:
    """GPT2LMHeadModel."""
    fields.refuse("add_cross_attention", "cross attention is not supported yet")
    fields.refuse("reorder_and_upcast_attn", "upcast attention is not supported yet")
    kind = LayerKind(
        wiring=Wiring.GPT2,
        activation=fields.activation("activation_function", default=Activation.GELU_NEW),
        softmax=Softmax.ROUNDED,
        strided=frozenset("qkv"),
        **GPT2_LAYER,
    )
    return gpt2_like(fields, "gpt2", kind, cache_holder=CacheHolder.NOBODY)


def gpt_bigcode(fields: Fields) -> Architecture:
    """GPTBigCodeForCausalLM: StarCoder and SantaCoder."""
    fields.only("add_cross_attention", False)
    multi_query = fields.flag("multi_query", default=True)
    kind = LayerKind(
        wiring=Wiring.GPT_BIGCODE,
        activation=fields.activation("activation_function", default=Activation.GELU_PYTORCH_TANH),
        multi_query=multi_query,
        strided=frozenset("q" if multi_query else ""),
        **GPT2_LAYER,
    )
    return gpt2_like(fields, "gpt_bigcode", kind)


GPT2_LAYER: dict[str, Any] = {
    "norm": Norm.LAYER,
    "norms": Norms(before_attention="ln_1", before_mlp="ln_2"),
    "query_key_value_bias": True,
    "output_bias": True,
    "mlp_bias": True,
}


def gpt2_like(
    fields: Fields, model_type: str, kind: LayerKind, *, cache_holder: CacheHolder | None = None
) -> Architecture:
    """Layers of one kind, with GPT-2's names and defaults of fields."""
    hidden_size = fields.size("n_embd", "hidden_size", default=768)
    num_heads = fields.size("n_head", "num_attention_heads", default=12)
    divides("n_head", num_heads, "n_embd", hidden_size)
    layer = Layer(
        kind=kind,
        num_attention_heads=num_heads,
        num_key_value_heads=1 if kind.multi_query else num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.optional_size("n_inner", default=None) or 4 * hidden_size,
    )
    return Architecture(
        model_type=model_type,
        kind=ModelKind(wiring=kind.wiring, norm=Norm.LAYER, learned_positions=True, cache_holder=cache_holder),
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
