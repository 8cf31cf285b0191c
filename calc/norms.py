"""Normalisations as rows: one function per class of the transformers library (transformers 5.23.0)."""

from collections.abc import Callable
from dataclasses import replace

from .architecture import Norm
from .dtype import DType
from .ledger import Component, Gradient, Row, Shape, Tensor
from .liger import liger_rms_norm
from .operators import Numerics, parameter, stamped
from .primitives import cast, frame, like, multiply, power, scale, shift, unary, wider

NormRows = Callable[[str, Tensor, str, Shape, Numerics], tuple[list[Row], Tensor]]
"""Of a norm's name, its input, its output's name, its weight's shape and the types: the rows and the output."""


def rms_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """LlamaRMSNorm.forward: x·rsqrt(mean(x²) + ε) in fp32, then the weight."""
    statistics: Shape = x.shape[: -len(dims)]
    rows = []
    x32 = x
    if x.dtype is not DType.FP32:
        x32 = like(x, f"{name}.x in fp32", dtype=DType.FP32)
        rows.append(cast(x, x32))
    squares = like(x32, f"{name}.squares")
    variance, shifted, rstd = (
        like(x32, f"{name}.{part}", shape=statistics) for part in ("variance", "variance + eps", "rstd")
    )
    normed = like(x32, f"{name}.normalised")
    rows += [
        power(x32, squares),
        scale(squares, variance, name="mean"),
        shift(variance, shifted),
        _rsqrt(shifted, rstd),
        multiply(x32, rstd, normed),
    ]
    rounded = normed
    if x.dtype is not DType.FP32:
        rounded = like(x, f"{name}.normalised, rounded")
        rows.append(cast(normed, rounded))
    weight = parameter(f"{name}.weight", dims, numerics)
    out = like(x, out_name, dtype=wider(weight.dtype, rounded.dtype))
    rows += [multiply(weight, rounded, out), frame(x, normed, variance)]
    return stamped(rows, Component.NORM, name), out


def _rsqrt(x: Tensor, out: Tensor) -> Row:
    """Keeps its result; `-0.5 * grad * result.pow(3)` makes two temporaries."""
    inner = tuple(like(out, f"{part_name} in rsqrt_backward") for part_name in ("power", "scaled gradient"))
    return replace(unary("rsqrt", x, out, saves_output=True), backward_temporaries=inner)


def layer_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """F.layer_norm: keeps its input, and mean and reciprocal deviation in fp32 (CUDA's accumulation type)."""
    mean, rstd = (Tensor(f"{name}.{part}", x.shape[: -len(dims)], DType.FP32) for part in ("mean", "rstd"))
    weight, bias = (parameter(f"{name}.{part}", dims, numerics) for part in ("weight", "bias"))
    out = like(x, out_name)
    row = Row(
        name="layer_norm",
        reads=(x, weight, bias),
        writes=(out, mean, rstd),
        gradients=(Gradient(of=x, needs=(weight,)), Gradient(of=weight), Gradient(of=bias)),
        saves=(x, mean, rstd),
        elementwise_flops=1,
    )
    return stamped([row], Component.NORM, name), out


NORMS: dict[Norm, NormRows] = {
    Norm.RMS: rms_norm,
    Norm.LAYER: layer_norm,
}


def norm_of(norm: Norm, *, liger: bool) -> NormRows:
    """What computes `norm`: transformers itself, or Liger's kernel in its place."""
    return liger_rms_norm if liger else NORMS[norm]
