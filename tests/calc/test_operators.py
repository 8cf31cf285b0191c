"""Operators row by row: shapes, types and what is kept, on one layer with the bytes counted by hand.

The formulas are PyTorch's (tools/autograd/derivatives.yaml); each test names the factor it holds.
"""

from collections.abc import Iterable

import pytest

from calc.attention import HEADS
from calc.dtype import DType
from calc.kinds import LLAMA_ROTARY, Activation
from calc.ledger import Kind, Row, Tensor, requires_gradient, saved_for_backward
from calc.losses import cross_entropy
from calc.norms import layer_norm, rms_norm
from calc.operators import (
    Numerics,
    activation,
    autocast_weight,
    linear,
    parameter,
)
from calc.primitives import dropout, multiply, power, softmax
from calc.rotary import turned
from calc.sizes import Sizes

FP32, BF16, FP16, BOOL, INT64 = DType.FP32, DType.BF16, DType.FP16, DType.BOOL, DType.INT64
HALF = Numerics(weights=BF16, compute=BF16)
SINGLE = Numerics(weights=FP32, compute=FP32)
AUTOCAST = Numerics(weights=FP32, compute=BF16)
STREAM = ("B", "S", "H")
# All different primes but N = 2K, so that no product of them equals another by accident.
SIZES = Sizes({"B": 3, "S": 5, "S+1": 6, "H": 7, "F": 11, "N": 26, "K": 13, "D": 34, "D/2": 17, "V": 19, "R": 23})
SIZES |= {"S⌈128⌉": 128, "D⌈32⌉": 64}


def numel(*shape: str) -> int:
    return SIZES[shape]


def saved(rows: Iterable[Row], *roots: Tensor) -> dict[str, DType]:
    """What the nodes keep if `roots` and the weights need gradients: names and types, parameters left out."""
    rows = list(rows)
    required = requires_gradient(rows, roots)
    kept = [tensor for row in rows for tensor in saved_for_backward(row, required)]
    return {tensor.name: tensor.dtype for tensor in kept if tensor.kind is not Kind.PARAMETERS}


def named(rows: Iterable[Row], name: str) -> Row:
    return next(row for row in rows if row.name == name)


def stream(numerics: Numerics) -> Tensor:
    return Tensor("x", STREAM, numerics.weights)


@pytest.mark.parametrize("bias", [False, True])
def test_linear(bias: bool) -> None:
    x, out = stream(HALF), Tensor("out", ("B", "S", "F"), BF16)
    row = named(linear("fc", x, out, ("H",), ("F",), HALF, bias=bias), "linear")
    flops = 2 * 3 * 5 * 7 * 11
    assert [product.flops(SIZES) for product in row.products] == [flops]
    by_name = {gradient.of.name: gradient.products for gradient in row.gradients}
    assert sum(product.flops(SIZES) for products in by_name.values() for product in products) == 2 * flops
    assert by_name.keys() == {"x", "fc.weight", *(["fc.bias"] if bias else [])}
    assert saved([row], x) == {"x": BF16}


def test_linear_under_autocast_keeps_casts() -> None:
    x, out = stream(AUTOCAST), Tensor("out", ("B", "S", "F"), BF16)
    rows = linear("fc", x, out, ("H",), ("F",), AUTOCAST, bias=True)
    assert saved(rows, x) == {"x cast for fc": BF16, "fc.weight cast": BF16}
    written = [tensor.name for row in rows for tensor in row.writes]
    assert written == ["fc.bias cast", "fc.weight cast", "x cast for fc", "out"]


def test_autocast_casts_no_input_that_is_low_already() -> None:
    x, out = Tensor("x", STREAM, BF16), Tensor("out", ("B", "S", "F"), BF16)
    assert [row.name for row in linear("fc", x, out, ("H",), ("F",), AUTOCAST)] == ["to", "linear", "return"]


def test_only_weights_casts_are_cached() -> None:
    _, low = autocast_weight(parameter("w", ("F", "H"), AUTOCAST), AUTOCAST)
    assert (low.kind, low.dtype, low.shape) == (Kind.AUTOCAST_WEIGHTS, BF16, ("F", "H"))
    assert autocast_weight(low, HALF) == ([], low)


def test_layer_norm() -> None:
    x = stream(HALF)
    (row,), out = layer_norm("ln", x, "out", ("H",), HALF)
    assert saved([row], x) == {"x": BF16, "ln.mean": FP32, "ln.rstd": FP32}
    assert {tensor.numel(SIZES) for tensor in row.writes if tensor != out} == {3 * 5}
    assert [gradient.of.name for gradient in row.gradients] == ["x", "ln.weight", "ln.bias"]


@pytest.mark.parametrize(
    ("numerics", "extra"),
    [(SINGLE, {}), (HALF, {"norm.x in fp32": FP32, "norm.normalised, rounded": BF16})],
)
def test_rms_norm(numerics: Numerics, extra: dict[str, DType]) -> None:
    x = stream(numerics)
    rows, out = rms_norm("norm", x, "out", ("H",), numerics)
    x32 = {} if extra else {"x": FP32, "norm.normalised": FP32}
    # x² keeps x, rsqrt its result, x·rstd both factors, weight·normalised the second.
    assert saved(rows, x) == {"norm.rstd": FP32, **x32, **extra}
    assert (out.dtype, out.shape) == (numerics.weights, STREAM)


def test_rsqrt_takes_two_temporaries_in_backward() -> None:
    rows, _ = rms_norm("norm", stream(SINGLE), "out", ("H",), SINGLE)
    temporaries = named(rows, "rsqrt").backward_temporaries  # -0.5 * grad * result.pow(3)
    assert [tensor.numel(SIZES) for tensor in temporaries] == [3 * 5, 3 * 5]


def test_power_takes_two_temporaries_in_backward() -> None:
    x = stream(SINGLE)
    row = power(x, Tensor("out", STREAM, FP32))
    assert [tensor.numel(SIZES) for tensor in row.backward_temporaries] == [numel(*STREAM)] * 2
    assert saved([row], x) == {"x": FP32}


def test_multiplication_keeps_each_factor_for_the_other() -> None:
    x, y = stream(SINGLE), Tensor("y", STREAM, FP32)
    row = multiply(x, y, Tensor("out", STREAM, FP32))
    assert saved([row], x, y) == {"x": FP32, "y": FP32}
    assert saved([row], x) == {"y": FP32}


def test_a_dropout_keeps_a_byte_per_element() -> None:
    x = stream(HALF)
    row = dropout(x, Tensor("out", STREAM, BF16))
    assert saved([row], x) == {"out.mask": BOOL}


def test_softmax_keeps_its_result() -> None:
    x, out = stream(SINGLE), Tensor("out", STREAM, FP32)
    assert saved([softmax(x, out)], x) == {"out": FP32}


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (Activation.GELU, {"x"}),
        (Activation.GELU_PYTORCH_TANH, {"x"}),
        (Activation.SILU, {"x"}),
        (Activation.RELU, {"out"}),
        (Activation.GELU_NEW, {"x", "out.half", "out.tanh", "out.1 + tanh"}),
    ],
)
def test_activations(function: Activation, kept: set[str]) -> None:
    x = Tensor("x", ("B", "S", "F"), BF16)
    rows, out = activation(function, x, "out", HALF)
    assert saved(rows, x).keys() == kept
    assert (out.name, out.dtype) == ("out", BF16)


def test_gelu_new_is_fp32_from_its_power_on_under_autocast() -> None:
    x = Tensor("x", ("B", "S", "F"), BF16)
    rows, out = activation(Activation.GELU_NEW, x, "out", AUTOCAST)
    assert saved(rows, x) == {"out.x in fp32": FP32, "out.half": BF16, "out.tanh": FP32, "out.1 + tanh": FP32}
    assert out.dtype is FP32


def test_rotary_positions_make_queries_fp32_under_autocast() -> None:
    q, k = (Tensor(name, HEADS, BF16) for name in "qk")
    cos, sin = (Tensor(name, ("S", "D"), FP32) for name in ("cos", "sin"))
    rows, (out, _), _ = turned(q, k, (cos, sin), LLAMA_ROTARY)
    assert out.dtype is FP32
    assert saved(rows, q) == {"cos": FP32, "sin": FP32}
    halves = [tensor.numel(SIZES) for row in rows for tensor in row.writes if "half" in tensor.name]
    assert halves == [numel("B", "S", "N", "D/2")] * 6  # of q and k each: the first, the second, the second negated


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_cross_entropy(dtype: DType) -> None:
    logits = Tensor("logits", ("B", "S", "V"), dtype)
    rows, loss = cross_entropy(logits, one_sequence=False)
    assert saved(rows, logits) == {"log probabilities": FP32, "target": INT64, "number of targets": FP32}
    written = {tensor.name: tensor.nbytes(SIZES) for row in rows for tensor in row.writes}
    copies = {} if dtype is FP32 else {"logits in fp32": 4 * 3 * 5 * 19}
    assert written == {
        **copies,
        "labels padded": 8 * 3 * 6,
        "target": 8 * 3 * 5,
        "log probabilities": 4 * 3 * 5 * 19,
        "loss": 4,
        "number of targets": 4,
    }
    assert (loss.shape, loss.dtype) == ((), FP32)


def test_the_shifted_labels_of_one_sequence_are_a_view() -> None:
    logits = Tensor("logits", ("B", "S", "V"), FP32)
    assert [named(cross_entropy(logits, one_sequence=one)[0], "shift").is_view for one in (True, False)] == [
        True,
        False,
    ]
