"""Attention that GPT-Neo and GPT-J write out in each layer, scores in fp32 (transformers 5.23.0, models/gptj)."""

from calc.attention import merged, weighted_values
from calc.dtype import DType
from calc.kinds import Wiring
from calc.ledger import Component, Gradient, Kind, Row, Tensor
from calc.operators import CORE_MODULE, Numerics, autocast_input, stamped
from calc.primitives import add, cast, frame, like, matmul, scale, softmax, wider

from .facts import LayerFacts

SEEN = Tensor("attn.attention.bias", (1, 1, "P", "P"), DType.BOOL, Kind.BUFFERS)
"""GPT-Neo's mask of which tokens each sees, in each layer."""


def written_out_attention(
    q: Tensor, k: Tensor, v: Tensor, facts: LayerFacts, numerics: Numerics
) -> tuple[list[Row], Tensor, Tensor]:
    """_attn, _merge_heads: the rows, the output and the probabilities, which the layer returns."""
    core = facts.core
    wide, (query, key) = _in_fp32((q, k))
    rows_k, lower_key = autocast_input(key, numerics, "scores")
    rows_q, lower_query = autocast_input(query, numerics, "scores")
    merge_q, left = merged(lower_query, core.merges_query_heads_by_copy)
    merge_k, right = merged(lower_key, core.merges_query_heads_by_copy and not core.cached_by_head)
    scores = Tensor("scores", core.scores, numerics.compute if numerics.autocast else DType.FP32)
    limiting, limited = _seen(scores) if facts.kind.wiring is Wiring.GPT_NEO else _divided(scores)
    mask = core.mask(numerics)
    masked = like(limited, "scores masked", dtype=wider(limited.dtype, mask.dtype))
    weights = like(masked, "attention weights", dtype=DType.FP32)
    rows = [
        *wide,
        *rows_k,
        *rows_q,
        *merge_q,
        *merge_k,
        matmul("scores", left, right, scores, core.scores_product),
        *limiting,
        add(limited, mask, masked, name="mask"),
        softmax(masked, weights),
    ]
    if v.dtype is not weights.dtype:
        rounded = like(weights, f"attention weights in {v.dtype.label}", dtype=v.dtype)
        rows.append(cast(weights, rounded))
        weights = rounded
    value_rows, out, weights = weighted_values(weights, v, core, numerics)
    *weighing, merging = value_rows
    rows += [*weighing, frame(query, key), merging]  # _attn returns before _merge_heads
    return stamped(rows, Component.ATTENTION, CORE_MODULE), out, weights


def _in_fp32(tensors: tuple[Tensor, Tensor]) -> tuple[list[Row], tuple[Tensor, ...]]:
    if tensors[0].dtype is DType.FP32:
        return [], tensors
    wide = tuple(like(x, f"{x.name} in fp32", dtype=DType.FP32) for x in tensors)
    return [cast(x, out) for x, out in zip(tensors, wide, strict=True)], wide


def _divided(scores: Tensor) -> tuple[list[Row], Tensor]:
    out = like(scores, "scores scaled")
    return [scale(scores, out, name="div")], out


def _seen(scores: Tensor) -> tuple[list[Row], Tensor]:
    """torch.where(causal_mask, scores, lowest): keeps the mask."""
    out = like(scores, "scores of what is seen")
    lowest = Tensor("lowest score", (), scores.dtype)
    row = Row(
        name="where",
        reads=(scores, SEEN),
        writes=(out,),
        gradients=(Gradient(of=scores),),
        saves=(SEEN,),
        backward_temporaries=(lowest,),
    )
    return [row], out
