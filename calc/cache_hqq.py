"""Keys and values in groups as HQQ quantises them: hqq 0.2.8 (core/quantize.py, Quantizer; core/optimize.py,
optimize_weights_proximal_legacy) on CUDA, below HQQQuantizedLayer of transformers 5.23.0.

The search for the zero points stops by its error, never before its second round; from that on each round takes the
same, so two stand for all.
"""

from collections.abc import Iterator
from dataclasses import replace

from .dtype import DType
from .ledger import Row, Tensor
from .primitives import cast, frame, like, renamed

ROUNDS = 2


def quantised(plain: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, codes_per_byte: int) -> list[Row]:
    """HQQQuantizedLayer._quantize of a contiguous tensor."""

    def small(what: str, dtype: DType = DType.FP32) -> Tensor:
        return like(scales, f"{plain.name}, {what}", dtype=dtype)

    wide = plain if plain.dtype is DType.FP32 else like(plain, f"{plain.name}, in fp32", dtype=DType.FP32)
    least, largest, span, inverse, by_span, guarded, scale = map(
        small, ("least", "largest", "span", "1 / span", "steps / span", "not of small spans", "scale")
    )
    negative, zero = small("-least"), small("zero")
    index, narrow, ones = small("index", DType.INT64), small("span is small", DType.BOOL), small("ones")
    rows = [
        *([] if wide is plain else [cast(plain, wide)]),
        Row(name="min", reads=(wide,), writes=(least,), temporaries=(index,)),
        Row(name="max", reads=(wide,), writes=(largest,), temporaries=(index,)),
        Row(name="sub", reads=(largest, least), writes=(span,)),
        Row(name="reciprocal", reads=(span,), writes=(inverse,)),
        Row(name="mul", reads=(inverse,), writes=(by_span,)),
        Row(name="where", reads=(by_span, span), writes=(guarded,), temporaries=(narrow, ones)),
        Row(name="clamp", reads=(guarded,), writes=(scale,)),
        Row(name="neg", reads=(least,), writes=(negative,)),
        Row(name="mul", reads=(negative, scale), writes=(zero,)),
    ]
    found, half_scale, half_zero = _searched(plain, wide, scale, zero)
    numbers, quantising = _rounded(wide, half_scale, half_zero, f"{plain.name}, at last")
    inverse_half, as_scale = small("1 / scale", DType.FP16), small("its inverse", DType.FP16)
    rows += [
        *found,
        *quantising,
        frame(wide, least, largest, scale, zero),
        Row(name="reciprocal", reads=(half_scale,), writes=(inverse_half,)),
        Row(name="mul", reads=(inverse_half,), writes=(as_scale,)),
        frame(half_scale),
        *_packed(numbers, codes, codes_per_byte),
        frame(numbers),
        frame(span),
    ]
    keep = renamed if scales.dtype is DType.FP16 else cast
    return [*rows, keep(as_scale, scales), keep(half_zero, zeros), frame(plain)]


def _rounded(x: Tensor, scale: Tensor, zero: Tensor, name: str) -> tuple[Tensor, list[Row]]:
    """round(x · scale + zero), clamped in place."""
    scaled, moved, rounded = (like(x, f"{name}: {what}") for what in ("scaled", "moved", "rounded"))
    return rounded, [
        Row(name="mul", reads=(x, scale), writes=(scaled,), elementwise_flops=1),
        Row(name="add", reads=(scaled, zero), writes=(moved,), elementwise_flops=1),
        Row(name="round", reads=(moved,), writes=(rounded,)),
    ]


def _searched(plain: Tensor, wide: Tensor, scale: Tensor, zero: Tensor) -> tuple[list[Row], Tensor, Tensor]:
    """optimize_weights_proximal_legacy up to its last rounding: the rows, scale and zero in fp16."""
    half, half_scale, half_zero = (
        like(each, f"{each.name}, in fp16", dtype=DType.FP16) for each in (replace(wide, name=plain.name), scale, zero)
    )
    error = Tensor(f"{plain.name}, best error", (), DType.FP32)
    rows = [
        *(cast(each, lower) for each, lower in ((wide, half), (scale, half_scale), (zero, half_zero))),
        Row(name="tensor", reads=(), writes=(error,)),
    ]
    before: tuple[Tensor, ...] = ()
    for number in range(ROUNDS):
        found, numbers, back, half_zero, error_now = _round(
            f"{plain.name}, round {number}", half, half_scale, half_zero
        )
        rows += [*found[0], frame(*before), *found[1], frame(error)]
        before, error = (numbers, back), error_now
    return [*rows, frame(half, *before, error)], half_scale, half_zero


Round = tuple[tuple[list[Row], list[Row]], Tensor, Tensor, Tensor, Tensor]


def _round(name: str, half: Tensor, scale: Tensor, zero: Tensor) -> Round:
    """optimize_weights_proximal_legacy_step, then its error."""

    def large(what: str) -> Tensor:
        return like(half, f"{name}: {what}")

    numbers, quantising = _rounded(half, scale, zero, name)
    moved, back, apart, shrunk, power, weighted, sign = map(
        large, ("moved back", "written out", "apart", "shrunk", "power", "weighted", "sign")
    )
    left, scaled, missing, difference, size = map(
        large, ("left", "left, scaled", "missing", "difference", "|difference|")
    )
    next_zero = like(zero, f"{name}: zero")
    mean, error, better = (
        Tensor(f"{name}: {what}", (), dtype)
        for what, dtype in (("error", DType.FP16), ("error in fp32", DType.FP32), ("is better", DType.BOOL))
    )
    step = [
        *quantising,
        Row(name="sub", reads=(numbers, zero), writes=(moved,), elementwise_flops=1),
        Row(name="div", reads=(moved, scale), writes=(back,), elementwise_flops=1),
        Row(name="sub", reads=(half, back), writes=(apart,), elementwise_flops=1),
        Row(name="abs", reads=(apart,), writes=(shrunk,)),
        Row(name="pow", reads=(shrunk,), writes=(power,), elementwise_flops=1),
        Row(name="mul", reads=(power,), writes=(weighted,), elementwise_flops=1),
        frame(weighted, shrunk),
        Row(name="sign", reads=(apart,), writes=(sign,)),
        frame(sign, apart),
        Row(name="sub", reads=(half, shrunk), writes=(left,), elementwise_flops=1),
        Row(name="mul", reads=(left, scale), writes=(scaled,), elementwise_flops=1),
        Row(name="sub", reads=(numbers, scaled), writes=(missing,), elementwise_flops=1),
        Row(name="mean", reads=(missing,), writes=(next_zero,)),
        frame(shrunk, zero),
    ]
    judged = [
        Row(name="sub", reads=(half, back), writes=(difference,), elementwise_flops=1),
        Row(name="abs", reads=(difference,), writes=(size,)),
        Row(name="mean", reads=(size,), writes=(mean,)),
        cast(mean, error),
        Row(name="lt", reads=(error,), writes=(better,)),
    ]
    return (step, judged), numbers, back, next_zero, error


def _packed(numbers: Tensor, codes: Tensor, codes_per_byte: int) -> Iterator[Row]:
    """BitPack.pack_8bit_u8, pack_4bit_u8, pack_2bit_u8."""
    if codes_per_byte == 1:
        yield cast(numbers, codes)
        return
    whole = like(numbers, f"{numbers.name}, as bytes", dtype=DType.UINT8)
    yield cast(numbers, whole)
    joined: Tensor | None = None
    for part in range(codes_per_byte - 1):
        shifted = like(codes, f"{whole.name}, part {part}")
        yield Row(name="lshift", reads=(whole,), writes=(shifted,))
        if joined is not None:
            both = like(codes, f"{whole.name}, to part {part}")
            yield Row(name="or", reads=(joined, shifted), writes=(both,))
            shifted = both
        joined = shifted
    yield Row(name="or", reads=(whole, *((joined,) if joined else ())), writes=(codes,))


def written_out(plain: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, codes_per_byte: int) -> list[Row]:
    """Quantizer.dequantize."""
    numbers, moved = (like(plain, f"{plain.name}, {what}") for what in ("as numbers", "moved"))
    masked, shifted = (like(codes, f"{codes.name}, {what}") for what in ("masked", "shifted"))
    if codes_per_byte == 1:
        unpacking = [cast(codes, numbers)]
    else:
        parts = Row(name="rshift", reads=(codes,), temporaries=(masked, shifted))
        unpacking = [Row(name="empty", reads=(), writes=(numbers,)), parts]
    return [
        *unpacking,
        Row(name="sub", reads=(numbers, zeros), writes=(moved,), elementwise_flops=1),
        Row(name="mul", reads=(moved, scales), writes=(plain,), elementwise_flops=1),
        frame(numbers),
    ]
