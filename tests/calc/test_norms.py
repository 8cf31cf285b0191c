"""Norms and positions of Llama's kin, row by row: what is kept for backward, counted by hand.

The real models' steps say the same in tests/validation/test_families.py; here one changed factor fails in a moment.
"""

from collections.abc import Iterable

import pytest

from calc.attention import HEADS
from calc.dtype import DType
from calc.kinds import LLAMA_ROTARY, PARTIAL_ROTARY, Norm, PositionTables, Rotary
from calc.ledger import Kind, Row, Tensor, requires_gradient, saved_for_backward
from calc.norms import norm_of
from calc.operators import Numerics
from calc.rotary import rotary_tables, tables_row, turned
from calc.sizes import Sizes

FP32, BF16 = DType.FP32, DType.BF16
HALF, SINGLE = Numerics(weights=BF16, compute=BF16), Numerics(weights=FP32, compute=FP32)
SIZES = Sizes({"B": 3, "S": 5, "H": 7, "N": 26, "D": 34, "D/2": 17, "Q": 12, "Q/2": 6, "D-Q": 22})
X, ROWS, WEIGHT = 3 * 5 * 7, 3 * 5, 7
"""Elements of the residual stream, its rows, and elements of a norm's weight."""


def kept_bytes(rows: Iterable[Row], *roots: Tensor) -> int:
    """What the nodes keep if `roots` and the weights need gradients, parameters left out, each tensor once."""
    rows = list(rows)
    required = requires_gradient(rows, roots)
    kept = {tensor for row in rows for tensor in saved_for_backward(row, required)}
    return sum(tensor.nbytes(SIZES) for tensor in kept if tensor.kind is not Kind.PARAMETERS)


def normed(norm: Norm, numerics: Numerics) -> tuple[list[Row], Tensor, Tensor]:
    x = Tensor("x", ("B", "S", "H"), numerics.weights)
    rows, out = norm_of(norm, liger=False)("norm", x, "out", ("H",), numerics)
    return rows, x, out


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        # x in fp32 for its square and for x·rstd, rstd, and what the weight multiplies, rounded.
        (Norm.RMS, 4 * X + 4 * ROWS + 2 * X),
        # The same in fp32.
        (Norm.RMS_OLMO, 4 * X + 4 * ROWS + 4 * X),
        # And 1 + weight in fp32.
        (Norm.RMS_GEMMA, 4 * X + 4 * ROWS + 4 * X + 4 * WEIGHT),
        # x as it is, mean and rstd.
        (Norm.LAYER, 2 * X + 2 * 4 * ROWS),
        (Norm.LAYER_WITHOUT_BIAS, 2 * X + 2 * 4 * ROWS),
        (Norm.LAYER_OLMO, 4 * X + 2 * 4 * ROWS),
        # x - mean twice, for its square and for the product, rstd, what the weight multiplies, and the weight in fp32.
        (Norm.LAYER_COHERE, 3 * 4 * X + 4 * ROWS + 4 * WEIGHT),
    ],
)
def test_what_a_norm_keeps_in_half_precision(norm: Norm, expected: int) -> None:
    rows, x, out = normed(norm, HALF)
    assert kept_bytes(rows, x) == expected
    assert (out.shape, out.dtype) == (x.shape, BF16)


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (Norm.RMS, 2 * 4 * X + 4 * ROWS),
        (Norm.RMS_OLMO, 2 * 4 * X + 4 * ROWS),
        (Norm.RMS_GEMMA, 2 * 4 * X + 4 * ROWS + 4 * WEIGHT),
        (Norm.LAYER_OLMO, 4 * X + 2 * 4 * ROWS),
        (Norm.LAYER_COHERE, 3 * 4 * X + 4 * ROWS),
    ],
)
def test_what_a_norm_keeps_in_fp32(norm: Norm, expected: int) -> None:
    rows, x, _ = normed(norm, SINGLE)
    assert kept_bytes(rows, x) == expected


@pytest.mark.parametrize("norm", list(Norm))
def test_a_norms_parameters(norm: Norm) -> None:
    rows, _, _ = normed(norm, HALF)
    found = {tensor.name: tensor.numel(SIZES) for row in rows for tensor in row.reads if tensor.kind is Kind.PARAMETERS}
    weight, bias = {"norm.weight": WEIGHT}, {"norm.bias": WEIGHT}
    expected = {Norm.LAYER: weight | bias, Norm.LAYER_OLMO: {}}
    assert found == expected.get(norm, weight)


TABLE, PART_TABLE = 5 * 34, 5 * 12
"""Elements of a table of positions, for a whole head and for the part that is turned."""


@pytest.mark.parametrize(
    ("rotary", "expected"),
    [
        (LLAMA_ROTARY, 2 * 2 * TABLE),
        (Rotary(tables=PositionTables.FP32, rounds=True), 2 * 4 * TABLE),
        (Rotary(inputs_in_fp32=True, rounds=True), 2 * 2 * TABLE),
        (Rotary(repeats_tables=True), 2 * 2 * TABLE),
        (PARTIAL_ROTARY, 2 * 2 * PART_TABLE),
    ],
)
def test_positions_keep_their_tables_alone(rotary: Rotary, expected: int) -> None:
    q, k = (Tensor(name, HEADS, BF16) for name in "qk")
    rows, _, _ = turned(q, k, rotary_tables(rotary, HALF, sliding=False), rotary)
    assert kept_bytes(rows, q) == expected


@pytest.mark.parametrize(
    ("rotary", "dtype"),
    [
        (LLAMA_ROTARY, BF16),
        (Rotary(tables=PositionTables.FP32), FP32),
        (Rotary(tables=PositionTables.FP32, rounds=True), BF16),
        (Rotary(inputs_in_fp32=True), FP32),
        (Rotary(inputs_in_fp32=True, rounds=True), BF16),
        (PARTIAL_ROTARY, BF16),
    ],
)
def test_the_type_that_positions_leave(rotary: Rotary, dtype: DType) -> None:
    q, k = (Tensor(name, HEADS, BF16) for name in "qk")
    _, results, _ = turned(q, k, rotary_tables(rotary, HALF, sliding=False), rotary)
    assert [(result.shape, result.dtype) for result in results] == [(HEADS, dtype)] * 2


def test_tables_are_made_in_fp32_and_rounded_where_the_model_does() -> None:
    rounded, kept = (
        tables_row(rotary_tables(Rotary(tables=tables), HALF, sliding=False))
        for tables in (PositionTables.ROUNDED, PositionTables.FP32)
    )
    assert [table.dtype for table in rounded.writes] == [BF16] * 2
    assert [table.dtype for table in kept.writes] == [FP32] * 2
    assert sum(each.numel(SIZES) for each in rounded.temporaries) == 3 * TABLE
    assert sum(each.numel(SIZES) for each in kept.temporaries) == TABLE


def test_layers_with_a_window_have_tables_of_their_own_where_the_model_makes_them() -> None:
    by_window = Rotary(tables=PositionTables.BY_WINDOW)
    assert rotary_tables(by_window, HALF, sliding=True) != rotary_tables(by_window, HALF, sliding=False)
    assert rotary_tables(LLAMA_ROTARY, HALF, sliding=True) == rotary_tables(LLAMA_ROTARY, HALF, sliding=False)
