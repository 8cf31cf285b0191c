"""GPT-BigCode's layer: GPT-2's with one key/value head for all queries (transformers 5.23.0, models/gpt_bigcode)."""

from calc.attention import HEADS, KEY_VALUE_HEADS
from calc.cache import updated
from calc.dtype import DType
from calc.ledger import Kind, Row, Section, Shape, Tensor
from calc.operators import Numerics, dropped, linear
from calc.primitives import frame, like, part, view
from calc.wirings import Parts

from .attention import attention
from .facts import LayerFacts
from .gpt2 import GPT2_END, gpt2_embeddings, gpt2_like_layer

GPT_BIGCODE_BUFFERS = (Tensor("bias", ("P", "P"), DType.BOOL, Kind.BUFFERS),)
"""The causal mask, which nothing reads any more."""

ONE_KEY_VALUE_HEAD: Shape = ("N+2K", "D")
FUSED_BY_HEAD: Shape = ("N", 3, "D")


def gpt_bigcode_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """GPTBigCodeBlock."""
    return gpt2_like_layer(_attention, facts, numerics, conv1d=False)


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """GPTBigCodeAttention.forward."""
    multi_query = facts.kind.multi_query
    dims = ONE_KEY_VALUE_HEAD if multi_query else FUSED_BY_HEAD
    fused = Tensor("c_attn output", ("B", "S", *dims), numerics.linear)
    q, k, v = (Tensor(name, shape, numerics.linear) for name, shape in zip("qkv", _shapes(multi_query), strict=True))
    cache_rows, key, value = updated(k, v, facts.core.cache, numerics)
    core_rows, out, held = attention(q, key, value, facts, numerics, positions=None)
    projected = Tensor("c_proj output", ("B", "S", "H"), numerics.compute)
    dropping, result = dropped(projected, "attn output", on=facts.residual_dropout)
    rows = [
        *linear("attn.c_attn", x, fused, ("H",), dims, numerics, bias=True),
        *_parted(fused, (q, k, v), facts),
        *cache_rows,
        *core_rows,
        *linear("attn.c_proj", out, projected, ("N", "D"), ("H",), numerics, bias=True),
        *dropping,
        frame(fused, q, key, value),
    ]
    return rows, result, held


def _shapes(multi_query: bool) -> tuple[Shape, Shape, Shape]:
    return (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS) if multi_query else (HEADS, HEADS, HEADS)


def _parted(fused: Tensor, heads: tuple[Tensor, Tensor, Tensor], facts: LayerFacts) -> list[Row]:
    """One projection's parts: behind each other for one key/value head, else side by side in each head."""
    core, (q, k, v) = facts.core, heads
    if not facts.kind.multi_query:
        by_head = like(fused, "qkv")
        return [view(fused, by_head, copies_gradient=not core.one_head), part(by_head, heads)]
    flat = like(q, "q part")
    return [part(fused, (flat, k, v)), view(flat, q, copies_gradient=core.gradients_by_head and not core.one_head)]


PARTS = Parts(
    embeddings=gpt2_embeddings, layer=gpt_bigcode_layer, end=GPT2_END, buffers=lambda facts: GPT_BIGCODE_BUFFERS
)
