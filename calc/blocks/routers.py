"""Routers of mixtures of experts: each token's experts and their weights (transformers 5.23.0)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from calc.dtype import DType
from calc.kinds import Mixture, Router
from calc.ledger import Gradient, Kind, Product, Row, Tensor
from calc.operators import TOKENS, Numerics, autocast_input, linear, parameter
from calc.primitives import cast, frame, like, matmul, scale, shift, softmax, unary, view

from .sparse_mixer import CHOSEN, best_of_sparse_mixer, sparse_mixer

Routed = tuple[list[Row], tuple[Tensor, ...]]
"""The rows; and what the block holds until it returns: each token's weights of its experts, their indices, the logits
the router returns."""
LOGITS = 2
"""Their place among these."""


def router(x: Tensor, mixture: Mixture, numerics: Numerics) -> Routed:
    return ROUTERS[mixture.router](x, mixture, numerics)


def _softmax_router(x: Tensor, mixture: Mixture, numerics: Numerics) -> Routed:
    """MixtralTopKRouter.forward."""
    rows, logits = _logits(x, mixture, numerics)
    softmax_rows, shares = _probabilities(logits, casts=mixture.casts_logits)
    best = like(shares, "weights of experts", shape=CHOSEN)
    indices = like(best, INDICES, dtype=DType.INT64)
    rows += [*softmax_rows, _top(shares, best, indices)]
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


def _probabilities(logits: Tensor, *, casts: bool = False) -> tuple[list[Row], Tensor]:
    """A softmax in fp32, of logits that are cast first, or that it is to cast itself."""
    scores, rows = logits, list[Row]()
    # One CUDA kernel takes fp16 to an fp32 softmax where the softmax itself is asked for it (SoftMax.cpp).
    if logits.dtype is DType.BF16 or (logits.dtype is DType.FP16 and casts):
        scores = like(logits, "router logits in fp32", dtype=DType.FP32)
        rows.append(cast(logits, scores))
    shares = like(logits, "router probabilities", dtype=DType.FP32)
    return [*rows, softmax(scores, shares)], shares


def _logits(x: Tensor, mixture: Mixture, numerics: Numerics) -> tuple[list[Row], Tensor]:
    logits = Tensor("router logits", (*TOKENS, "X"), numerics.compute)
    bias = mixture.router is Router.SOFTMAX_OF_BEST
    product = linear(f"mlp.{mixture.gate}", x, logits, ("H",), ("X",), numerics, bias=bias)
    return [replace(row, name="router") if row.products else row for row in product], logits


def _logits_in_fp32(x: Tensor, mixture: Mixture, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """`F.linear(x.type(float32), weight.type(float32))`, of which autocast makes a product like any other."""
    if numerics.weights is DType.FP32:
        return _logits(x, mixture, numerics)
    weight = parameter(f"mlp.{mixture.gate}.weight", ("X", "H"), numerics, num_columns=1)
    wide_x, wide_weight = (like(each, f"{each.name} in fp32", dtype=DType.FP32) for each in (x, weight))
    rows_x, factor = autocast_input(wide_x, numerics, "the router")
    rows_weight, other = autocast_input(wide_weight, numerics, "the router")
    logits = Tensor("router logits", (*TOKENS, "X"), factor.dtype)
    casts = [cast(x, wide_x), cast(weight, wide_weight), *rows_x, *rows_weight]
    [(product, *_)] = [row.products for row in _logits(x, mixture, numerics)[0] if row.products]
    return [*casts, matmul("router", factor, other, logits, product)], logits


def _sigmoid_groups_router(x: Tensor, mixture: Mixture, numerics: Numerics) -> Routed:
    """DeepseekV3TopkRouter.forward: a correction decides who is chosen, not with what weight (from_pretrained keeps it
    in fp32, from_config does not). A group is as good as its best two."""
    rows, logits = _logits_in_fp32(x, mixture, numerics)
    scores = like(logits, "router scores")
    correction = Tensor(f"mlp.{mixture.gate}.e_score_correction_bias", ("X",), numerics.weights, Kind.BUFFERS)
    if mixture.correction_in_fp32:
        correction = replace(correction, dtype=DType.FP32)
    corrected, allowed = (like(logits, f"router scores, {what}", dtype=DType.FP32) for what in ("corrected", "allowed"))
    of_groups = like(corrected, "scores of groups", shape=(*TOKENS, "Xg"))
    best_two = like(of_groups, "best two of each group", shape=(*of_groups.shape, 2))
    of_two = like(best_two, "indices of the best two", dtype=DType.INT64)
    groups = _best_groups(of_groups, corrected, mixture)
    best = like(scores, "weights of experts", shape=CHOSEN)
    values, indices = like(best, "scores of experts", dtype=DType.FP32), like(best, INDICES, dtype=DType.INT64)
    rows += [
        unary("sigmoid", logits, scores, saves_output=True),
        Row(name="add", reads=(scores, correction), writes=(corrected,), elementwise_flops=1),
        Row(name="topk", reads=(corrected,), writes=(best_two, of_two)),
        Row(name="sum", reads=(best_two,), writes=(of_groups,)),
        *groups.rows,
        Row(name="masked_fill", reads=(corrected, groups.excluded), writes=(allowed,)),
        Row(name="topk", reads=(allowed,), writes=(values, indices)),
        _gathered(scores, indices, best),
    ]
    weights = best
    if mixture.normalises_weights:
        normalising, weights = _normalised(best, numerics, above_zero=True)
        rows += normalising
    scaled = like(weights, f"{best.name}, scaled")
    rows += [scale(weights, scaled), *_end(scores, allowed, groups, saved=(of_two, groups.excluded))]
    return rows, (scaled, indices, logits)


def _scaled_softmax_router(x: Tensor, mixture: Mixture, numerics: Numerics) -> Routed:
    """DeepseekV2TopkRouter.forward: the best of all experts, or of those of the groups with the best of them."""
    rows, logits = _logits_in_fp32(x, mixture, numerics)
    softmax_rows, shares = _probabilities(logits)
    rows += softmax_rows
    allowed, end = shares, [frame(shares)]
    if mixture.router is Router.SOFTMAX_GROUPS:
        of_groups = like(shares, "scores of groups", shape=(*TOKENS, "Xg"))
        index = like(of_groups, "indices of the best of each group", dtype=DType.INT64)
        groups = _best_groups(of_groups, shares, mixture)
        allowed = like(shares, "router probabilities, allowed")
        filled = Row(name="masked_fill", reads=(shares, groups.excluded), writes=(allowed,))
        rows += [
            Row(name="max", reads=(shares,), writes=(of_groups, index)),
            *groups.rows,
            replace(filled, gradients=(Gradient(of=shares),), saves=(groups.excluded,)),
        ]
        end = _end(shares, allowed, groups, saved=(index,))
    best = like(shares, "weights of experts", shape=CHOSEN)
    indices, scaled = like(best, INDICES, dtype=DType.INT64), like(best, f"{best.name}, scaled")
    return [*rows, _top(allowed, best, indices), scale(best, scaled), *end], (scaled, indices, logits)


def _softmax_of_best_router(x: Tensor, mixture: Mixture, numerics: Numerics) -> Routed:
    """GptOssTopKRouter.forward."""
    rows, logits = _logits(x, mixture, numerics)
    best = like(logits, "logits of experts", shape=CHOSEN)
    indices, weights = like(best, INDICES, dtype=DType.INT64), like(best, "weights of experts")
    return [*rows, _top(logits, best, indices), softmax(best, weights)], (weights, indices, logits)


def _softmax_of_best_in_fp32_router(x: Tensor, mixture: Mixture, numerics: Numerics) -> Routed:
    """GraniteMoeTopKRouter.forward."""
    rows, logits = _logits(x, mixture, numerics)
    if logits.dtype is not DType.FP32:
        wide = like(logits, "router logits in fp32", dtype=DType.FP32)
        rows.append(cast(logits, wide))
        logits = wide
    best = like(logits, "logits of experts", shape=CHOSEN)
    indices, weights = like(best, INDICES, dtype=DType.INT64), like(best, "weights of experts")
    rows += [_top(logits, best, indices), softmax(best, weights)]
    if x.dtype is not weights.dtype:
        rounded = like(weights, f"{weights.name}, rounded", dtype=x.dtype)
        rows.append(cast(weights, rounded))
        weights = rounded
    return [*rows, frame(best)], (weights, indices, logits)


def _corrected_softmax_router(x: Tensor, mixture: Mixture, numerics: Numerics) -> Routed:
    """Ernie4_5_MoeTopKRouter.forward, in fp32 even under autocast, as its weights are: a correction, which is a
    parameter that is not trained, decides who is chosen, not with what weight."""
    gate = f"mlp.{mixture.gate}"
    weight = Tensor(f"{gate}.weight", ("X", "H"), DType.FP32, Kind.PARAMETERS, trainable=True, num_columns=1)
    bias = Tensor(f"{gate}.moe_statics.e_score_correction_bias", (1, "X"), DType.FP32, Kind.PARAMETERS)
    wide = x if x.dtype is DType.FP32 else like(x, f"{x.name} in fp32", dtype=DType.FP32)
    logits = Tensor("router logits", (*TOKENS, "X"), DType.FP32)
    shares, corrected = like(logits, "router probabilities"), like(logits, "router probabilities, corrected")
    values, best = (like(shares, name, shape=CHOSEN) for name in ("corrected of experts", "weights of experts"))
    indices = like(best, INDICES, dtype=DType.INT64)
    total, divisor = (like(best, f"{best.name}, {what}", shape=TOKENS) for what in ("summed", "at least"))
    normalised, rounded = like(best, f"{best.name}, normalised"), like(best, f"{best.name}, rounded", dtype=x.dtype)
    rounds = x.dtype is not DType.FP32
    rows = [
        *([cast(x, wide)] if rounds else []),
        matmul("router", wide, weight, logits, Product((), TOKENS, ("X",), ("H",))),
        softmax(logits, shares),
        Row(name="add", reads=(shares, bias), writes=(corrected,), elementwise_flops=1),
        Row(name="topk", reads=(corrected,), writes=(values, indices)),
        _gathered(shares, indices, best),
        frame(shares),
        Row(name="sum", reads=(best,), writes=(total,), gradients=(Gradient(of=best, passes=True, viewed=True),)),
        unary("clamp", total, divisor),
        _divided(best, divisor, normalised),
        *([cast(normalised, rounded), frame(normalised)] if rounds else []),
        frame(values),
    ]
    return rows, (rounded if rounds else normalised, indices, logits)


def _divided(x: Tensor, divisor: Tensor, out: Tensor) -> Row:
    """`x / divisor`: keeps both; the gradient of the divisor goes by the quotient (div_tensor_other_grad)."""
    inner = ("quotient", "quotient of it", "negated")
    return Row(
        name="div",
        reads=(x, divisor),
        writes=(out,),
        gradients=(
            Gradient(of=x),
            Gradient(of=divisor, unreduced=like(out, f"∂{divisor.name} before its sum")),
        ),
        saves=(x, divisor),
        backward_temporaries=tuple(like(out, f"{name} in div_backward") for name in inner),
        elementwise_flops=1,
    )


def _sparse_mixer_router(x: Tensor, mixture: Mixture, numerics: Numerics) -> Routed:
    """PhimoeTopKRouter.forward, an nn.Linear."""
    logits = Tensor("router logits", (*TOKENS, "X"), numerics.linear)
    mixer = sparse_mixer if mixture.router is Router.SPARSE_MIXER else best_of_sparse_mixer
    rows, weights, indices = mixer(logits, numerics)
    return [*linear(f"mlp.{mixture.gate}", x, logits, ("H",), ("X",), numerics), *rows], (weights, indices, logits)


INDICES = "indices of experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Groups:
    """How the experts of the best groups are found."""

    rows: list[Row]
    excluded: Tensor
    """The experts of the others."""
    held: tuple[Tensor, ...]
    """By the router until it returns."""
    saved: Tensor
    """By the node of the choice, of which nothing comes back."""


def _best_groups(of_groups: Tensor, scores: Tensor, mixture: Mixture) -> _Groups:
    """The groups' scores to a mask of `scores`."""
    best = like(of_groups, "scores of the best groups", shape=(*TOKENS, "Yg"))
    indices = like(best, "indices of the best groups", dtype=DType.INT64)
    mask, in_best = like(of_groups, "best groups"), like(scores, "experts of the best groups")
    booleans, excluded = (like(scores, f"experts {what}", dtype=DType.BOOL) for what in ("allowed", "excluded"))
    rows = [
        Row(name="topk", reads=(of_groups,), writes=(best, indices)),
        Row(name="zeros_like", reads=(of_groups,), writes=(mask,)),
        view(mask, in_best) if mixture.one_group else Row(name="reshape", reads=(mask,), writes=(in_best,)),
        Row(name="to", reads=(in_best,), writes=(booleans,)),
        Row(name="bitwise_not", reads=(booleans,), writes=(excluded,)),
    ]
    return _Groups(rows=rows, excluded=excluded, held=(of_groups, mask, in_best), saved=indices)


def _end(scores: Tensor, allowed: Tensor, groups: _Groups, *, saved: tuple[Tensor, ...]) -> list[Row]:
    """The router returns; what led to the groups has a graph too, which no backward reaches."""
    end = frame(scores, allowed, *groups.held)
    return [replace(end, gradients=(Gradient(of=scores),), graph=(*saved, groups.saved))]


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
    Router.CORRECTED_SOFTMAX: _corrected_softmax_router,
    Router.SPARSE_MIXER: _sparse_mixer_router,
    Router.BEST_OF_SPARSE_MIXER: _sparse_mixer_router,
    Router.SCALED_SOFTMAX: _scaled_softmax_router,
    Router.SOFTMAX_OF_BEST: _softmax_of_best_router,
    Router.SOFTMAX_OF_BEST_IN_FP32: _softmax_of_best_in_fp32_router,
    Router.SOFTMAX_GROUPS: _scaled_softmax_router,
}
