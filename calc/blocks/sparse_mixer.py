"""SparseMixer, the router of Phi-3.5-MoE (transformers 5.23.0, models/phimoe): in training a token's two experts are
drawn one after the other, each with a gradient of its own making; else they are the best."""

from dataclasses import dataclass, replace

from calc.dtype import DType
from calc.ledger import Gradient, Row, Shape, Tensor
from calc.operators import TOKENS, Numerics
from calc.primitives import cast, cat, frame, like, softmax

CHOSEN: Shape = (*TOKENS, "Y")
"""Every token as often as it has experts."""
ONE: Shape = (*TOKENS, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draw:
    """One expert of each token, drawn."""

    rows: list[Row]
    index: Tensor
    weight: Tensor
    factor: Tensor
    """Held until the next draw has its own."""
    held: tuple[Tensor, ...]
    """Until the function returns."""
    highest: Tensor
    """Where the probabilities are largest: kept by a node of which nothing comes back."""


def sparse_mixer(scores: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor, Tensor]:
    """sparsemixer: the rows, each token's weights of its two experts, and which those are."""
    first = _drawn("first", scores, scores, numerics)
    left = like(scores, "router logits without the first expert")
    leaving = Row(
        name="scatter",
        reads=(scores, first.index),
        writes=(left,),
        gradients=(Gradient(of=scores),),
        saves=(first.index,),
    )
    second = _drawn("second", left, scores, numerics)
    weights = like(first.weight, "weights of experts", shape=CHOSEN)
    indices = like(weights, "indices of experts", dtype=DType.INT64)
    end = frame(left, second.weight, second.factor, *first.held, *second.held)
    rows = [
        *first.rows,
        leaving,
        *second.rows,
        frame(first.factor),
        cat((first.weight, second.weight), weights),
        Row(name="cat", reads=(first.index, second.index), writes=(indices,)),
        replace(end, gradients=(Gradient(of=scores),), graph=(first.highest, second.highest)),
    ]
    return rows, weights, indices


@dataclass(frozen=True, slots=True, kw_only=True)
class _Near:
    """What is near the best of each token's scores."""

    rows: list[Row]
    best: Tensor
    """The index of the largest."""
    factor: Tensor
    far: Tensor
    near: Tensor


def _near(name: str, given: Tensor, scores: Tensor) -> _Near:
    largest, best = (
        Tensor(f"{name}: {what}", ONE, dtype)
        for what, dtype in (("largest score", scores.dtype), ("best", DType.INT64))
    )
    magnitude, factor, below, share = (like(scores, f"{name}: {what}") for what in ("|x|", "factor", "below", "share"))
    far, near = like(scores, f"{name}: too far", dtype=DType.BOOL), like(scores, f"{name}: near")
    filling = Row(
        name="masked_fill",
        reads=(given, far),
        writes=(near,),
        gradients=(Gradient(of=given),),
        saves=(far,),
    )
    rows = [
        Row(name="max", reads=(given,), writes=(largest, best)),
        Row(name="abs", reads=(scores,), writes=(magnitude,)),
        Row(name="clamp", reads=(magnitude, largest), writes=(factor,)),
        Row(name="sub", reads=(largest, scores), writes=(below,)),
        Row(name="div", reads=(below, factor), writes=(share,)),
        Row(name="gt", reads=(share, largest), writes=(far,)),
        filling,
    ]
    return _Near(rows=rows, best=best, factor=factor, far=far, near=near)


def best_of_sparse_mixer(scores: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor, Tensor]:
    """sparsemixer outside of training. What is too far from the first and its factor go when the second's are there."""
    left = like(scores, "router logits without the first expert")
    found = [_near("first", scores, scores), _near("second", left, scores)]
    compute = DType.FP32 if numerics.autocast else scores.dtype
    rows: list[Row] = []
    shares = [like(scores, f"{name}: probabilities", dtype=compute) for name in ("first", "second")]
    chances = [like(each, f"{each.name} of the best", shape=ONE) for each in shares]
    first, second = found
    for near, probabilities, chance in zip(found, shares, chances, strict=True):
        largest, magnitude, clamp, *others = near.rows
        let_go = ([], []) if near is first else ([frame(first.far)], [frame(first.factor)])
        rows += [largest, *let_go[0], magnitude, clamp, *let_go[1], *others]
        rows += [
            *_softmax(near.near, probabilities),
            Row(name="gather", reads=(probabilities, near.best), writes=(chance,)),
        ]
        if near is first:
            rows.append(Row(name="scatter", reads=(scores, near.best), writes=(left,)))
    weights = like(chances[0], "weights of experts", shape=CHOSEN)
    indices = like(weights, "indices of experts", dtype=DType.INT64)
    rows += [
        cat(tuple(chances), weights),
        Row(name="cat", reads=(first.best, second.best), writes=(indices,)),
        frame(left, *shares, *chances, second.far, second.factor),
    ]
    return rows, weights, indices


def _drawn(name: str, given: Tensor, scores: Tensor, numerics: Numerics) -> _Draw:
    """One expert of those `given` that are near the best: its number by chance, its weight, and PhimoeMultiplier."""
    compute = DType.FP32 if numerics.autocast else scores.dtype
    found = _near(name, given, scores)
    best, factor, near = found.best, found.factor, found.near
    highest = Tensor(f"{name}: highest probability", ONE, compute)
    index, highest_index = (Tensor(f"{name}: {what}", ONE, DType.INT64) for what in ("expert", "top"))
    shares = like(scores, f"{name}: probabilities", dtype=compute)
    weight, for_one, out = (like(shares, f"{name}: {what}", shape=ONE) for what in ("weight", "factor", "multiplier"))
    rows = [
        *found.rows,
        _sampled(near, index, numerics),
        *_softmax(near, shares),
        Row(name="gather", reads=(shares, index), writes=(weight,), gradients=(Gradient(of=shares),), saves=(index,)),
        Row(name="max", reads=(shares, best), writes=(highest, highest_index)),
        _halved(index, highest_index, for_one),
        _multiplied(scores, weight, index, shares, for_one, out),
    ]
    held = (highest, highest_index, for_one)
    return _Draw(rows=rows, index=index, weight=out, factor=factor, held=held, highest=highest_index)


def _sampled(near: Tensor, index: Tensor, numerics: Numerics) -> Row:
    """`(near - exponential_().log()).max(dim=-1)[1]`; autocast takes logarithms in fp32."""
    noise = like(near, "noise")
    wide = like(noise, "noise in fp32", dtype=DType.FP32) if numerics.autocast else noise
    logarithm = like(wide, "log of the noise")
    made = (noise, wide, logarithm) if wide.dtype is not noise.dtype else (noise, logarithm)
    return Row(name="sample", reads=(near,), writes=(index,), temporaries=made)


def _softmax(x: Tensor, out: Tensor) -> list[Row]:
    """In fp32 under autocast; one CUDA kernel takes fp16 there (SoftMax.cpp)."""
    if out.dtype is x.dtype or x.dtype is DType.FP16:
        return [softmax(x, out), frame(x)]
    wide = like(x, f"{x.name} in fp32", dtype=DType.FP32)
    return [cast(x, wide), softmax(wide, out), frame(x)]


def _halved(index: Tensor, highest: Tensor, out: Tensor) -> Row:
    """Heun's third-order method: 1, or by chance a third of it."""
    same, drawn = (like(index, f"{what} of {out.name}", dtype=DType.BOOL) for what in ("same", "drawn"))
    return Row(name="add", reads=(index, highest), writes=(out,), temporaries=(same, like(out, "chance"), drawn))


def _multiplied(scores: Tensor, weight: Tensor, index: Tensor, shares: Tensor, factor: Tensor, out: Tensor) -> Row:
    """PhimoeMultiplier: all that scores get of the weight's gradient."""
    unreduced = None if shares.dtype is scores.dtype else like(shares, f"∂{scores.name} before its cast")
    return Row(
        name="PhimoeMultiplier",
        reads=(scores, weight, index, shares, factor),
        writes=(out,),
        gradients=(Gradient(of=scores, unreduced=unreduced),),
        saves=(weight, index, shares),
        backward_temporaries=tuple(like(weight, f"{what} in PhimoeMultiplier") for what in ("weighted", "negated")),
        elementwise_flops=1,
    )
