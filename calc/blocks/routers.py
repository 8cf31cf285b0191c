"""Routers of mixtures of experts: each token's experts and their weights (transformers 5.23.0)."""

from collections.abc import Callable
from dataclasses import replace

from calc.architecture import Mixture, Router
from calc.dtype import DType
from calc.ledger import Gradient, Kind, Row, Shape, Tensor
from calc.operators import TOKENS, Numerics, linear, parameter
from calc.primitives import cast, frame, like, matmul, scale, shift, softmax, unary, view

CHOSEN: Shape = (*TOKENS, "Y")
"""Every token as often as it has experts."""
GATE = "mlp.gate"

Routed = tuple[list[Row], tuple[Tensor, ...]]
"""The rows; and what the block holds until it returns, first each token's weights of its experts and their indices."""


def router(x: Tensor, mixture: Mixture, numerics: Numerics) -> Routed:
    return ROUTERS[mixture.router](x, mixture, numerics)


def _softmax_router(x: Tensor, mixture: Mixture, numerics: Numerics) -> Routed:
    """MixtralTopKRouter.forward."""
    rows, logits = _logits(x, numerics)
    scores = logits
    # One CUDA kernel takes fp16 to an fp32 softmax where the softmax itself is asked for it (SoftMax.cpp).
    if logits.dtype is DType.BF16 or (logits.dtype is DType.FP16 and mixture.casts_logits):
        scores = like(logits, "router logits in fp32", dtype=DType.FP32)
        rows.append(cast(logits, scores))
    shares = like(logits, "router probabilities", dtype=DType.FP32)
    best = like(shares, "weights of experts", shape=CHOSEN)
    indices = like(best, "indices of experts", dtype=DType.INT64)
    rows += [softmax(scores, shares), _top(shares, best, indices)]
    weights = best
    if mixture.normalises_weights:
        normalising, weights = _normalised(best, numerics)
        rows += normalising
    if mixture.rounds_weights and weights.dtype is not logits.dtype:
        rounded = like(weights, f"{best.name}, rounded", dtype=logits.dtype)
        rows.append(cast(weights, rounded))
        weights = rounded
    rows.append(frame(shares))
    return rows, (weights, indices, logits)


def _logits(x: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor]:
    logits = Tensor("router logits", (*TOKENS, "X"), numerics.compute)
    product = linear(GATE, x, logits, ("H",), ("X",), numerics)
    return [replace(row, name="router") if row.products else row for row in product], logits


def _logits_in_fp32(x: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """`F.linear(x.type(float32), weight.type(float32))`, of which autocast makes a product like any other."""
    if numerics.weights is DType.FP32:
        return _logits(x, numerics)
    weight = parameter(f"{GATE}.weight", ("X", "H"), numerics, num_columns=1)
    wide_x, wide_weight = (like(each, f"{each.name} in fp32", dtype=DType.FP32) for each in (x, weight))
    logits = Tensor("router logits", (*TOKENS, "X"), DType.FP32)
    casts = [cast(x, wide_x), cast(weight, wide_weight)]
    [(product, *_)] = [row.products for row in _logits(x, numerics)[0] if row.products]
    return [*casts, matmul("router", wide_x, wide_weight, logits, product)], logits


def _sigmoid_groups_router(x: Tensor, mixture: Mixture, numerics: Numerics) -> Routed:
    """DeepseekV3TopkRouter.forward: a correction decides who is chosen, not with what weight (from_pretrained keeps it
    in fp32, from_config does not). What leads to the indices has a graph too, which no backward reaches."""
    rows, logits = _logits_in_fp32(x, numerics)
    scores = like(logits, "router scores")
    correction = Tensor(f"{GATE}.e_score_correction_bias", ("X",), numerics.weights, Kind.BUFFERS)
    corrected, allowed = (like(logits, f"router scores, {what}", dtype=DType.FP32) for what in ("corrected", "allowed"))
    rows += [
        unary("sigmoid", logits, scores, saves_output=True),
        Row(name="add", reads=(scores, correction), writes=(corrected,), elementwise_flops=1),
    ]
    group_rows, excluded, held, saved = _best_groups(corrected, mixture)
    best = like(scores, "weights of experts", shape=CHOSEN)
    values = like(allowed, "scores of experts", shape=CHOSEN)
    indices = like(best, "indices of experts", dtype=DType.INT64)
    rows += [
        *group_rows,
        Row(name="masked_fill", reads=(corrected, excluded), writes=(allowed,)),
        Row(name="topk", reads=(allowed,), writes=(values, indices)),
        _gathered(scores, indices, best),
    ]
    weights = best
    if mixture.normalises_weights:
        normalising, weights = _normalised(best, numerics, above_zero=True)
        rows += normalising
    scaled = like(weights, "weights of experts, scaled")
    end = replace(frame(scores, allowed, *held), gradients=(Gradient(of=scores),), graph=(excluded, *saved))
    rows += [scale(weights, scaled), end]
    return rows, (scaled, indices, logits)


def _best_groups(scores: Tensor, mixture: Mixture) -> tuple[list[Row], Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Which experts are in none of the best groups: the rows, those experts, what the function holds until it returns,
    and what the graph of the groups' scores saves."""
    grouped = like(scores, "scores of groups", shape=(*TOKENS, "Xg"))
    best_two = like(scores, "best of each group", shape=(*grouped.shape, 2))
    best_groups = like(scores, "scores of the best groups", shape=(*TOKENS, "Yg"))
    of_two, of_groups = (
        like(best, f"indices of the {best.name}", dtype=DType.INT64) for best in (best_two, best_groups)
    )
    mask, in_best = like(grouped, "best groups"), like(scores, "experts of the best groups")
    booleans, excluded = (like(scores, f"experts {what}", dtype=DType.BOOL) for what in ("allowed", "excluded"))
    spread = Row(name="reshape", reads=(mask,), writes=(in_best,))
    rows = [
        Row(name="topk", reads=(scores,), writes=(best_two, of_two)),
        Row(name="sum", reads=(best_two,), writes=(grouped,)),
        Row(name="topk", reads=(grouped,), writes=(best_groups, of_groups)),
        Row(name="zeros_like", reads=(grouped,), writes=(mask,)),
        view(mask, in_best) if mixture.one_group else spread,
        Row(name="to", reads=(in_best,), writes=(booleans,)),
        Row(name="bitwise_not", reads=(booleans,), writes=(excluded,)),
    ]
    return rows, excluded, (grouped, mask, in_best), (of_two, of_groups)


def _top(shares: Tensor, best: Tensor, indices: Tensor) -> Row:
    """topk: keeps the indices; its gradient is zeros with the chosen ones filled in."""
    return Row(name="topk", reads=(shares,), writes=(best, indices), gradients=(Gradient(of=shares),), saves=(indices,))


def _gathered(x: Tensor, indices: Tensor, out: Tensor) -> Row:
    """gather: keeps the indices; its gradient is zeros to which the chosen ones are added."""
    return Row(name="gather", reads=(x, indices), writes=(out,), gradients=(Gradient(of=x),), saves=(indices,))


def _normalised(best: Tensor, numerics: Numerics, *, above_zero: bool = False) -> tuple[list[Row], Tensor]:
    """`best /= best.sum(...)`, or a little more than that: autograd keeps a copy of what is overwritten
    (div_tensor_other_grad). Autocast sums in fp32."""
    dtype = DType.FP32 if numerics.autocast else best.dtype
    total = like(best, f"{best.name}, summed", shape=TOKENS, dtype=dtype)
    same = dtype is best.dtype
    rows = [Row(name="sum", reads=(best,), writes=(total,), gradients=(Gradient(of=best, passes=same),))]
    if above_zero:
        summed, total = total, like(total, f"{total.name}, above 0")
        rows.append(shift(summed, total))
    before, normalised = like(best, f"{best.name} before"), like(best, f"{best.name}, normalised")
    of_total, of_best, *inner = (
        like(best, name, dtype=dtype)
        for name in (
            *(f"∂{tensor.name} before sum and cast" for tensor in (total, best)),
            *(f"{name} in div_backward" for name in ("quotient", "quotient of it", "negated")),
        )
    )
    division = Row(
        name="div_",
        reads=(best, total, before),
        writes=(normalised,),
        gradients=(Gradient(of=total, unreduced=of_total), Gradient(of=best, unreduced=None if same else of_best)),
        saves=(before, total),
        is_view=True,
        backward_temporaries=tuple(inner),
        elementwise_flops=1,
    )
    return [*rows, Row(name="clone", reads=(best,), writes=(before,)), division], normalised


ROUTERS: dict[Router, Callable[[Tensor, Mixture, Numerics], Routed]] = {
    Router.SOFTMAX: _softmax_router,
    Router.SIGMOID_GROUPS: _sigmoid_groups_router,
}
