"""SparseMixer, the router of Phi-3.5-MoE, in training (transformers 5.23.0, models/phimoe): a token's two experts are
drawn one after the other, each with a gradient of its own making."""

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


MOST = ("largest score", "highest probability")


def _drawn(name: str, given: Tensor, scores: Tensor, numerics: Numerics) -> _Draw:
    """One expert of those `given` that are near the best: its number by chance, its weight, and PhimoeMultiplier."""
    compute = DType.FP32 if numerics.autocast else scores.dtype
    largest, highest = (
        Tensor(f"{name}: {what}", ONE, dtype) for what, dtype in zip(MOST, (scores.dtype, compute), strict=True)
    )
    best, index, highest_index = (Tensor(f"{name}: {what}", ONE, DType.INT64) for what in ("best", "expert", "top"))
    magnitude, factor, below, share = (like(scores, f"{name}: {what}") for what in ("|x|", "factor", "below", "share"))
    far = like(scores, f"{name}: too far", dtype=DType.BOOL)
    near, shares = like(scores, f"{name}: near"), like(scores, f"{name}: probabilities", dtype=compute)
    weight, for_one, out = (like(shares, f"{name}: {what}", shape=ONE) for what in ("weight", "factor", "multiplier"))
    rows = [
        Row(name="max", reads=(given,), writes=(largest, best)),
        Row(name="abs", reads=(scores,), writes=(magnitude,)),
        Row(name="clamp", reads=(magnitude, largest), writes=(factor,)),
        Row(name="sub", reads=(largest, scores), writes=(below,)),
        Row(name="div", reads=(below, factor), writes=(share,)),
        Row(name="gt", reads=(share, largest), writes=(far,)),
        Row(
            name="masked_fill",
            reads=(given, far),
            writes=(near,),
            gradients=(Gradient(of=given),),
            saves=(far,),
        ),
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
