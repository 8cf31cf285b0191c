"""Queries, keys and values of low-rank latents (transformers 5.23.0, models/deepseek_v3 and models/deepseek_v2)."""

from calc.attention import HEADS
from calc.cache import updated
from calc.kinds import LatentAttention, Rotary
from calc.ledger import Dimension, Gradient, Row, Tensor
from calc.norms import NORMS
from calc.operators import Numerics, linear
from calc.primitives import cat, like, part, view
from calc.rotary import rotary_tables, turned_fronts

from .facts import LayerFacts

POSITION_FREE_HEADS = (*HEADS[:-1], "D-Q")
TURNED_HEADS = (*HEADS[:-1], "Q")


def latent_heads(
    x: Tensor, rotary: Rotary, facts: LayerFacts, numerics: Numerics
) -> tuple[list[Row], tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """DeepseekV3Attention.forward up to its core: q, k and v by head, and what else the function goes on holding."""
    one_head = facts.core.one_head
    rows, flat_q = _queries(x, facts, numerics)
    q = like(flat_q, "q states")
    q_free, q_front = (like(q, f"q {what}", shape=shape) for what, shape in PARTS)
    latent = Tensor("kv_a_proj_with_mqa output", ("B", "S", "Rk+Q"), numerics.linear)
    compressed = like(latent, "latent keys and values", shape=("B", "S", "Rk"))
    k_front = like(latent, "k to turn", shape=("B", "S", "Q"))
    bias = facts.kind.query_key_value_bias
    rows += [
        view(flat_q, q, copies_gradient=not one_head),
        part(q, (q_free, q_front)),
        *linear("self_attn.kv_a_proj_with_mqa", x, latent, ("H",), ("Rk+Q",), numerics, bias=bias),
        part(latent, (compressed, k_front)),
    ]
    norm, normed = _norm("kv_a_layernorm", compressed, "Rk", facts, numerics)
    made = rotary_tables(rotary, numerics, sliding=False)
    turning, (q_turned, k_turned) = turned_fronts(q_front, k_front, made, rotary)
    query = like(q, "q", dtype=q_turned.dtype)
    caching, normed, k_turned = updated(normed, k_turned, facts.core.cache, numerics)
    expanding, k, v, both = _expanded(normed, k_turned, facts.core.keys, numerics, one_head=one_head)
    rows += [*norm, *turning, *caching, cat((q_free, q_turned), query), *expanding]
    return rows, (query, k, v), (q, q_turned, latent, normed, k_turned, both)


PARTS = (("to leave", POSITION_FREE_HEADS), ("to turn", TURNED_HEADS))


def _queries(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    flat = Tensor("q_proj output", HEADS, numerics.linear)
    if facts.kind.latent is not LatentAttention.ALL:
        return linear("self_attn.q_proj", x, flat, ("H",), HEADS[2:], numerics), flat
    latent = Tensor("q_a_proj output", ("B", "S", "Rq"), numerics.linear)
    norm, normed = _norm("q_a_layernorm", latent, "Rq", facts, numerics)
    rows = [
        *linear("self_attn.q_a_proj", x, latent, ("H",), ("Rq",), numerics, bias=facts.kind.query_key_value_bias),
        *norm,
        *linear("self_attn.q_b_proj", normed, flat, ("Rq",), HEADS[2:], numerics),
    ]
    return rows, flat


def _norm(name: str, x: Tensor, rank: str, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    return NORMS[facts.kind.norm](f"self_attn.{name}", x, f"{name} output", (rank,), numerics)


def _expanded(
    latent: Tensor, k_turned: Tensor, keys: Dimension, numerics: Numerics, *, one_head: bool
) -> tuple[list[Row], Tensor, Tensor, Tensor]:
    """DeepseekV3Attention.expand_kv: keys are written into a tensor part by part (CopySlices in
    autograd/functions/tensor.cpp), the turned ones the same for all heads; values stay parts of the projection."""
    heads = ("B", keys, "N")
    flat = Tensor("kv_b_proj output", (*heads, "D-Q+Dv"), numerics.linear)
    both = like(flat, "k and v")
    k_free, v = like(flat, "k to leave", shape=(*heads, "D-Q")), like(flat, "v", shape=(*heads, "Dv"))
    k_wide = like(k_turned, "k with positions for all heads", shape=(*heads, "Q"))
    k_begun, k = (like(flat, name, shape=(*heads, "D")) for name in ("k without positions", "k"))
    zeros, slices = (like(k_wide, f"{what} in CopySlices", dtype=k.dtype) for what in ("zeros", "a slice"))
    rows = [
        *linear("self_attn.kv_b_proj", latent, flat, ("Rk",), ("N", "D-Q+Dv"), numerics),
        view(flat, both, copies_gradient=not one_head),
        part(both, (k_free, v)),
        view(k_turned, k_wide, copies_gradient=not one_head),
        Row(
            name="copy_",
            reads=(k_free,),
            writes=(k_begun,),
            gradients=(Gradient(of=k_free),),
            backward_temporaries=(like(k, "∂k in CopySlices"),),
        ),
        Row(
            name="copy_",
            reads=(k_begun, k_wide),
            writes=(k,),
            gradients=(Gradient(of=k_begun), Gradient(of=k_wide)),
            is_view=True,
            backward_temporaries=(zeros,) if k_wide.dtype is k.dtype else (zeros, slices),
        ),
    ]
    return rows, k, v, both
