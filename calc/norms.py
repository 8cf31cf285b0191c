"""Normalisations as rows: one function per class of the transformers library (transformers 5.23.0)."""

from collections.abc import Callable
from dataclasses import replace

from .dtype import DType
from .kinds import Norm
from .ledger import Component, Gradient, Row, Shape, Tensor
from .liger import liger_rms_norm
from .operators import Numerics, parameter, stamped
from .primitives import cast, frame, like, multiply, power, scale, shift, subtract, unary, wider

NormRows = Callable[[str, Tensor, str, Shape, Numerics], tuple[list[Row], Tensor]]
"""Of a norm's name, its input, its output's name, its weight's shape and the types: the rows and the output."""


def rms_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """LlamaRMSNorm.forward: x·rsqrt(mean(x²) + ε) in fp32, rounded, then the weight."""
    rows, normed, variance = _over_root_mean_square(name, x, dims)
    rounded = normed
    if x.dtype is not normed.dtype:
        rounded = like(x, f"{name}.normalised, rounded")
        rows.append(cast(normed, rounded))
    weight = parameter(f"{name}.weight", dims, numerics)
    out = like(x, out_name, dtype=wider(weight.dtype, rounded.dtype))
    rows += [multiply(weight, rounded, out), frame(x, normed, variance)]
    return stamped(rows, Component.NORM, name), out


def llama4_rms_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """Llama4TextRMSNorm.forward: the same, step by step in one expression."""
    rows, rounded = length_norm(name, x, f"{name}.normalised, rounded", dims)
    weight = parameter(f"{name}.weight", dims, numerics)
    out = like(x, out_name, dtype=wider(weight.dtype, rounded.dtype))
    return [*rows, *stamped([multiply(rounded, weight, out), frame(x, rounded)], Component.NORM, name)], out


def length_norm(name: str, x: Tensor, out_name: str, dims: Shape) -> tuple[list[Row], Tensor]:
    """Llama4TextL2Norm.forward: x·rsqrt(mean(x²) + ε) in fp32, rounded."""
    rows, normed, _ = _over_root_mean_square(name, x, dims)
    out = like(x, out_name)
    rows = [*rows, cast(normed, out)] if x.dtype is not normed.dtype else _renamed(rows, normed, out)
    return stamped([*rows, frame(x)], Component.NORM, name), out


def _renamed(rows: list[Row], old: Tensor, new: Tensor) -> list[Row]:
    """`rows`, of which the last writes `new` in the place of `old`."""
    *before, last = rows
    return [*before, replace(last, writes=(new,))]


def t5_rms_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """T5LayerNorm.forward: the same, but x itself is multiplied, and rounded to the weight's type."""
    rows, normed, variance = _over_root_mean_square(name, x, dims, of_given=True)
    weight = parameter(f"{name}.weight", dims, numerics)
    rounded = normed
    if weight.dtype is not DType.FP32:
        rounded = like(normed, f"{name}.normalised, rounded", dtype=weight.dtype)
        rows.append(cast(normed, rounded))
    out = like(rounded, out_name)
    rows += [multiply(weight, rounded, out), frame(x, variance)]
    return stamped(rows, Component.NORM, name), out


def olmo_rms_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """Olmo2RMSNorm.forward: the same with the weight before rounding."""
    rows, normed, variance = _over_root_mean_square(name, x, dims)
    weighted, rounding, out = _rounded_result(f"{name}.weighted", normed, x, out_name)
    rows += [multiply(parameter(f"{name}.weight", dims, numerics), normed, weighted), *rounding]
    return stamped([*rows, frame(x, normed, variance)], Component.NORM, name), out


def gemma_rms_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """GemmaRMSNorm.forward: x̂·(1 + weight) in fp32, then rounded."""
    rows, normed, _ = _over_root_mean_square(name, x, dims)
    weight = parameter(f"{name}.weight", dims, numerics)
    casts, wide = _in_fp32(weight, f"{name}.weight in fp32")
    factor = like(wide, f"{name}.1 + weight")
    weighted, rounding, out = _rounded_result(f"{name}.weighted", normed, x, out_name)
    rows += [*casts, shift(wide, factor), multiply(normed, factor, weighted), frame(normed), *rounding, frame(x)]
    return stamped(rows, Component.NORM, name), out


def _over_root_mean_square(
    name: str, x: Tensor, dims: Shape, *, of_given: bool = False
) -> tuple[list[Row], Tensor, Tensor]:
    """x·rsqrt(mean(x²) + ε) in fp32: the rows, the result and the mean square. With `of_given` x itself is multiplied,
    else its cast."""
    statistics: Shape = x.shape[: -len(dims)]
    casts, x32 = _in_fp32(x, f"{name}.x in fp32")
    squares = like(x32, f"{name}.squares")
    variance, shifted, rstd = (
        like(x32, f"{name}.{part}", shape=statistics) for part in ("variance", "variance + eps", "rstd")
    )
    normed = like(x32, f"{name}.normalised")
    rows = [
        *casts,
        power(x32, squares),
        scale(squares, variance, name="mean"),
        shift(variance, shifted),
        _rsqrt(shifted, rstd),
        multiply(x if of_given else x32, rstd, normed),
    ]
    return rows, normed, variance


def _in_fp32(x: Tensor, name: str) -> tuple[list[Row], Tensor]:
    """`x.to(float32)`, which is x itself where it has that type."""
    if x.dtype is DType.FP32:
        return [], x
    wide = Tensor(name, x.shape, DType.FP32)
    return [cast(x, wide)], wide


def _rounded_result(name: str, normed: Tensor, given: Tensor, out_name: str) -> tuple[Tensor, list[Row], Tensor]:
    """A result in fp32 called `name`, the cast to the type of what the norm was given, and the output; where the types
    are one, the result is the output."""
    out = like(given, out_name)
    if given.dtype is normed.dtype:
        return out, [], out
    result = like(normed, name)
    return result, [cast(result, out)], out


def _rsqrt(x: Tensor, out: Tensor) -> Row:
    """Keeps its result; `-0.5 * grad * result.pow(3)` makes two temporaries."""
    inner = tuple(like(out, f"{part_name} in rsqrt_backward") for part_name in ("power", "scaled gradient"))
    return replace(unary("rsqrt", x, out, saves_output=True), backward_temporaries=inner)


def layer_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """F.layer_norm: keeps its input, and mean and reciprocal deviation in fp32 (CUDA's accumulation type)."""
    rows, out = layer_norm_without_bias(name, x, out_name, dims, numerics)
    bias = parameter(f"{name}.bias", dims, numerics)
    return [replace(row, reads=(*row.reads, bias), gradients=(*row.gradients, Gradient(of=bias))) for row in rows], out


def layer_norm_without_bias(
    name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics
) -> tuple[list[Row], Tensor]:
    """The same with a weight alone."""
    mean, rstd = (Tensor(f"{name}.{part}", x.shape[: -len(dims)], DType.FP32) for part in ("mean", "rstd"))
    weight = parameter(f"{name}.weight", dims, numerics)
    out = like(x, out_name)
    row = Row(
        name="layer_norm",
        reads=(x, weight),
        writes=(out, mean, rstd),
        gradients=(Gradient(of=x, needs=(weight,)), Gradient(of=weight)),
        saves=(x, mean, rstd),
        elementwise_flops=1,
    )
    return stamped([row], Component.NORM, name), out


def olmo_layer_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """OlmoLayerNorm.forward: F.layer_norm in fp32, without weights."""
    casts, x32 = _in_fp32(x, f"{name}.x in fp32")
    mean, rstd = (Tensor(f"{name}.{part}", x.shape[: -len(dims)], DType.FP32) for part in ("mean", "rstd"))
    normed, rounding, out = _rounded_result(f"{name}.normalised", x32, x, out_name)
    row = Row(
        name="layer_norm",
        reads=(x32,),
        writes=(normed, mean, rstd),
        gradients=(Gradient(of=x32),),
        saves=(x32, mean, rstd),
        elementwise_flops=1,
    )
    return stamped([*casts, row, *rounding, frame(x)], Component.NORM, name), out


def cohere_layer_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """CohereLayerNorm.forward: weight·(x - mean)·rsqrt(variance + ε) in fp32, each step a tensor; then rounded."""
    statistics: Shape = x.shape[: -len(dims)]
    casts, x32 = _in_fp32(x, f"{name}.x in fp32")
    mean, variance, shifted, rstd = (
        like(x32, f"{name}.{part}", shape=statistics) for part in ("mean", "variance", "variance + eps", "rstd")
    )
    centred, squares, centred_again, normed = (
        like(x32, f"{name}.{part}") for part in ("x - mean", "squares", "x - mean, again", "normalised")
    )
    casts_weight, weight = _in_fp32(parameter(f"{name}.weight", dims, numerics), f"{name}.weight in fp32")
    weighted, rounding, out = _rounded_result(f"{name}.weighted", normed, x, out_name)
    rows = [
        *casts,
        scale(x32, mean, name="mean"),
        subtract(x32, mean, centred),
        power(centred, squares),
        scale(squares, variance, name="mean"),
        subtract(x32, mean, centred_again),
        shift(variance, shifted),
        _rsqrt(shifted, rstd),
        multiply(centred_again, rstd, normed),
        *casts_weight,
        multiply(weight, normed, weighted),
        *rounding,
        frame(x, mean, variance, weighted),
    ]
    return stamped(rows, Component.NORM, name), out


NORMS: dict[Norm, NormRows] = {
    Norm.RMS: rms_norm,
    Norm.RMS_LLAMA4: llama4_rms_norm,
    Norm.RMS_OLMO: olmo_rms_norm,
    Norm.RMS_GEMMA: gemma_rms_norm,
    Norm.RMS_T5: t5_rms_norm,
    Norm.LAYER: layer_norm,
    Norm.LAYER_WITHOUT_BIAS: layer_norm_without_bias,
    Norm.LAYER_OLMO: olmo_layer_norm,
    Norm.LAYER_COHERE: cohere_layer_norm,
}


def norm_of(norm: Norm, *, liger: bool) -> NormRows:
    """What computes `norm`: transformers itself, or Liger's kernel in its place."""
    return liger_rms_norm if liger else NORMS[norm]
