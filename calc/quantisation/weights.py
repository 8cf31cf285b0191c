"""An architecture's weights as a checkpoint stores them: the ledger's parameters, matrices in a format's layout."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from calc.adapters.facts import OUTPUT_LAYER
from calc.adapters.modules import is_linear
from calc.architecture import Architecture
from calc.assembly import step_memory
from calc.dtype import DType
from calc.errors import ConfigError
from calc.ledger import Tensor
from calc.memory import Run, StepMemory
from calc.plan import resolve
from calc.scenario import Precision, Scenario
from calc.sizes import Sizes
from calc.wirings import parts_of

from .formats import WEIGHT, Matrix, Quantisation, matrix_of, matrix_of_experts

PRECISIONS = {DType.BF16: Precision.BF16, DType.FP16: Precision.FP16, DType.FP32: Precision.FP32}
"""In which the ledger has parameters of a type."""
ANY_LAYER = "*"
BIAS = ".bias"
KEPT_ARCHITECTURES = 64
"""Whose unquantised modules are kept."""
GROUPED = "grouped_mm"
"""The row that takes tokens to their experts' matrices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRow:
    """Equal tensors of a checkpoint."""

    name: str
    """From the model down, with a star for the layer."""
    shape: tuple[tuple[str, int], ...]
    """Each dimension as a formula, and its size."""
    dtype: str
    bytes: int
    """Of one."""
    count: int
    formula: str

    @property
    def total_bytes(self) -> int:
        return self.bytes * self.count

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def weight_bytes(
    architecture: Architecture, quantisation: Quantisation | None = None, *, dtype: DType = DType.BF16
) -> tuple[WeightRow, ...]:
    """The tensors that hold the weights of `architecture`, equal ones together, the largest first.

    `dtype` is the type of weights that are not quantised: a config's `dtype`, once `torch_dtype`. Experts lie in
    tensors of their own, as in published files; tied weights once; buffers are left out.
    """
    if architecture.is_encoder_decoder:
        raise ConfigError("model.model_type", architecture.model_type, "is not supported yet for an encoder-decoder")
    if architecture.images is not None and quantisation is not None:
        raise ConfigError("model.model_type", architecture.model_type, "is not supported yet with quantised weights")
    memory = _ledger(architecture, dtype)
    found: Counter[WeightRow] = Counter()
    for run in memory.runs:
        for tensor, count in _stored(run, parts_of(architecture.wiring).end.layers, quantisation):
            found[_row(tensor, run.sizes)] += count
    rows = (replace(row, count=count) for row, count in found.items())
    return tuple(sorted(rows, key=lambda row: (-row.total_bytes, row.name)))


def weight_total_bytes(rows: Iterable[WeightRow]) -> int:
    """Of all tensors: `metadata.total_size` of a model.safetensors.index.json."""
    return sum(row.total_bytes for row in rows)


def _ledger(architecture: Architecture, dtype: DType) -> StepMemory:
    """A step of one token, for its parameters."""
    if dtype not in PRECISIONS:
        raise ConfigError("dtype", dtype.label, f"should be one of {', '.join(each.label for each in PRECISIONS)}")
    scenario = Scenario(
        model={"model_type": architecture.model_type},
        sequence_length=architecture.input_length or 1,
        precision=PRECISIONS[dtype],
    )
    return step_memory(*resolve(scenario, architecture))


def _matrices(run: Run) -> Iterator[tuple[Tensor, Matrix | None]]:
    """The run's parameters, those with it that are the weight of a linear module or of experts."""
    parameters = [tensor for tensor, _ in run.part.parameters]
    names = {tensor.name for tensor in parameters}
    expert_products = {
        tensor: row.products[0] for row in run.part.section.rows if row.name == GROUPED for tensor in row.reads
    }
    linear = {tensor for row in run.part.section.rows if is_linear(row) for tensor in row.reads}
    for tensor in parameters:
        matrix = None
        if tensor in expert_products:
            matrix = matrix_of_experts(tensor, expert_products[tensor])
        elif tensor in linear and tensor.name.endswith(WEIGHT):
            has_bias = f"{tensor.name.removesuffix(WEIGHT)}{BIAS}" in names
            matrix = matrix_of(tensor, has_bias=has_bias, in_layer=run.part.in_layer)
        yield tensor, matrix


@lru_cache(maxsize=KEPT_ARCHITECTURES)
def with_kept_modules(architecture: Architecture, quantisation: Quantisation) -> Architecture:
    """`architecture` with the modules marked, layer by layer, that `quantisation` leaves as they are."""
    layers, by_layer = parts_of(architecture.wiring).end.layers, list[frozenset[str]]()
    for run in _ledger(architecture, DType.BF16).runs:
        if run.first_layer is not None:
            converted = [
                (matrix.module, list(_converted(matrix, run, layers, quantisation)))
                for _, matrix in _matrices(run)
                if matrix is not None
            ]
            by_layer += [
                frozenset(module for module, quantised in converted if not quantised[index])
                for index in range(run.count)
            ]
    return architecture.with_kept_modules(by_layer)


@lru_cache(maxsize=KEPT_ARCHITECTURES)
def shares_whole_groups(architecture: Architecture, quantisation: Quantisation) -> bool:
    """Whether a rank's `architecture` has whole groups of what shares a scale."""
    each_rows, each_columns = quantisation.format.group
    layers = parts_of(architecture.wiring).end.layers
    return all(
        run.sizes[matrix.rows] % each_rows == 0 and run.sizes[matrix.columns] % each_columns == 0
        for run in _ledger(architecture, DType.BF16).runs
        for _, matrix in _matrices(run)
        if matrix is not None and any(_converted(matrix, run, layers, quantisation))
    )


def _stored(run: Run, layers: str, quantisation: Quantisation | None) -> Iterator[tuple[Tensor, int]]:
    """The tensors of the run's parameters, named from the model down, and how often each is there."""
    for tensor, matrix in _matrices(run):
        if matrix is not None:
            quantised = sum(_converted(matrix, run, layers, quantisation))
            if quantised and quantisation is not None and quantisation.format.stored is not None:
                yield from ((_placed(each, run, layers), quantised) for each in quantisation.format.stored(matrix))
            if quantised < run.count:
                yield _placed(tensor, run, layers), run.count - quantised
        else:
            yield _placed(tensor, run, layers), run.count


def _converted(matrix: Matrix, run: Run, layers: str, quantisation: Quantisation | None) -> Iterator[bool]:
    """For each of the run's layers, whether `matrix` is quantised in it."""
    if quantisation is None:
        return
    if run.first_layer is None:
        yield quantisation.converts(matrix, matrix.module)
        return
    for index in range(run.first_layer, run.first_layer + run.count):
        yield quantisation.converts(matrix, f"{layers}.{index}.{matrix.module}")


def _placed(tensor: Tensor, run: Run, layers: str) -> Tensor:
    """`tensor` under its name from the model down."""
    if run.first_layer is not None:
        return replace(tensor, name=f"{layers}.{ANY_LAYER}.{tensor.name}")
    inside = "" if tensor.name.startswith(OUTPUT_LAYER) else f"{layers.rpartition('.')[0]}."
    return replace(tensor, name=inside + tensor.name)


def _row(tensor: Tensor, sizes: Sizes) -> WeightRow:
    return WeightRow(
        name=tensor.name,
        shape=tuple((str(dimension), sizes[dimension]) for dimension in tensor.shape),
        dtype=tensor.dtype.label,
        bytes=tensor.dtype.nbytes(sizes[tensor.shape]),
        count=1,
        formula=f"{'·'.join(map(str, tensor.shape)) or '1'} × {tensor.dtype.itemsize} bytes",
    )
