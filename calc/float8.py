"""Linear layers whose products run in fp8: torchao's Float8Linear in eager PyTorch (torchao 0.18.0, torchao/float8).

The recipe is `tensorwise`, torchao's default: one scale for a whole tensor, from its largest value at that moment.
Forward casts input and weight; backward casts gradient and weight, then gradient and input again, each in three
fp32 steps (hp_tensor_to_float8_dynamic, to_fp8_saturated). Kept are input and weight as they came. The node is a
Python function: what its frame names lives until it returns, and both gradients are made whichever are wanted.

Left out: the scale's own steps in fp64, one number each. torchao means the layer to be compiled; Inductor fuses the
casts, so these temporaries are more than a compiled step's.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from .dtype import DType
from .gradients import gradient_of
from .ledger import Gradient, Kind, Product, Row, Shape, Tensor
from .operators import Numerics, autocast_input
from .primitives import add, cast, frame, like


class _InFloat8(NamedTuple):
    """A tensor in fp8, its scale, and the operations that make both."""

    data: Tensor
    scale: Tensor
    rows: tuple[Row, ...]

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.data, self.scale


def _in_float8(x: Tensor, what: str) -> _InFloat8:
    """hp_tensor_to_float8_dynamic: the largest absolute value gives the scale; x is taken to fp32 unless it is, scaled,
    clamped and cast."""

    def made(step: str, dtype: DType, shape: Shape = x.shape) -> Tensor:
        return Tensor(f"{what} {step}", shape, dtype, Kind.TEMPORARIES)

    scale, scaled, data = made("scale", DType.FP32, ()), made("scaled", DType.FP32), made("in fp8", DType.FP8)
    in_fp32 = () if x.dtype is DType.FP32 else (made("in fp32", DType.FP32),)
    rows = (
        Row(name="amax", reads=(x,), writes=(scale,), temporaries=(made("sizes", x.dtype),)),
        Row(name="mul", reads=(x, scale), writes=(scaled,), temporaries=in_fp32),
        Row(name="to", reads=(scaled,), writes=(data,), temporaries=(made("clamped", DType.FP32),)),
    )
    return _InFloat8(data, scale, rows)


def _product(a: _InFloat8, b: _InFloat8, out: Tensor, *turned: Tensor) -> Row:
    """torch._scaled_mm: takes reciprocals of both scales, and copies of what lies otherwise than it reads."""
    copies = (replace(each, name=f"{each.name}, turned") for each in turned)
    reciprocals = (replace(each.scale, name=f"1 / {each.scale.name}") for each in (a, b))
    return Row(name="_scaled_mm", reads=(*a.tensors, *b.tensors), writes=(out,), temporaries=(*copies, *reciprocals))


def float8_linear(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, product: Product, numerics: Numerics
) -> list[Row]:
    """Float8Linear.forward: under autocast the input alone is cast; the bias is added to the product, out of place."""
    cast_x, lower = autocast_input(x, numerics, name)
    result = out if bias is None else like(out, f"{out.name} without bias")
    rows = [*cast_x, *_matmul(name, lower, weight, result, product)]
    if bias is not None:
        if bias.dtype is not out.dtype:
            rows.append(cast(bias, bias := Tensor(f"{bias.name} cast", bias.shape, out.dtype)))
        rows.append(add(result, bias, out))
    return [replace(row, module=name) for row in (*rows, frame(x, lower))]


def _matmul(name: str, x: Tensor, weight: Tensor, out: Tensor, product: Product) -> list[Row]:
    """matmul_with_hp_or_float8_args. The weight's gradient is in the output's type; the engine casts it."""
    unreduced = None
    if weight.dtype is not out.dtype:
        unreduced = Tensor(f"∂{weight.name} before its cast", weight.shape, out.dtype, Kind.TEMPORARIES)
    first, second = _in_float8(x, f"{name}: input"), _in_float8(weight, f"{name}: weight")
    multiplied = replace(
        _product(first, second, out),
        name="linear",
        reads=(x, weight, *first.tensors, *second.tensors),
        gradients=(Gradient(of=x, viewed=True), Gradient(of=weight, viewed=True, unreduced=unreduced)),
        saves=(x, weight),
        products=(product,),
        makes_all_gradients=True,
        backward_products=(product, product),
        backward_rows=tuple(_backward(name, x, weight, out, unreduced or gradient_of(weight))),
    )
    return [*first.rows, *second.rows, multiplied]


def _backward(name: str, x: Tensor, weight: Tensor, out: Tensor, weight_gradient: Tensor) -> Iterator[Row]:
    """The gradient of the input, then the weight's. The frame names all that is in fp8 but the turned copies."""
    gradient = gradient_of(out)
    by_rows, of_weight = _in_float8(gradient, f"{name}: gradient"), _in_float8(weight, f"{name}: weight again")
    yield from (*by_rows.rows, *of_weight.rows)
    yield _product(by_rows, of_weight, gradient_of(x), of_weight.data)
    by_columns, of_input = _in_float8(gradient, f"{name}: gradient again"), _in_float8(x, f"{name}: input again")
    yield from (*by_columns.rows, *of_input.rows)
    yield _product(by_columns, of_input, weight_gradient, by_columns.data, of_input.data)
    yield frame(*by_rows.tensors, *of_weight.tensors, *by_columns.tensors, *of_input.tensors)
