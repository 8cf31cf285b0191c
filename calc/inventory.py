"""The tensors behind every sum of an Estimate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .dtype import DType
from .ledger import Kind, Tensor
from .memory import StepMemory
from .sizes import Sizes, storage_bytes
from .timeline import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Equal tensors of one step: what they are, how many, and how many of them are alive at the peak."""

    name: str
    kind: Kind
    shape: tuple[tuple[str, int], ...]
    """(symbol, size) per dimension; a literal dimension is its own symbol."""
    dtype: str
    bytes: int
    """Of one, as allocated."""
    count: int
    """How many there are in the step; of temporaries, how many at the peak."""
    count_at_peak: int
    alive: str
    """From when to when."""
    source: str
    """What makes it, in which module of which library."""

    @property
    def formula(self) -> str:
        """`B·S·H × 2 bytes`: its shape is its formula."""
        return f"{'·'.join(symbol for symbol, _ in self.shape) or '1'} × {ITEMSIZES[self.dtype]} bytes"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": [list(dimension) for dimension in self.shape],
            "dtype": self.dtype,
            "bytes": self.bytes,
            "count": self.count,
            "count_at_peak": self.count_at_peak,
            "alive": self.alive,
            "formula": self.formula,
            "source": self.source,
        }


ITEMSIZES = {dtype.label: dtype.itemsize for dtype in DType}

ALIVE = {
    Kind.PARAMETERS: "always",
    Kind.OPTIMIZER_STATES: "always, from the first step's end on",
    Kind.BUFFERS: "always",
    Kind.INPUTS: "always",
    Kind.GRADIENTS: "from their backward to zero_grad",
    Kind.ACTIVATIONS: "from their forward to their backward",
    Kind.AUTOCAST_WEIGHTS: "from their forward to their backward, or to the end of autocast",
    Kind.TEMPORARIES: "for a moment",
}


def inventory(memory: StepMemory, library: str) -> tuple[TensorEntry, ...]:
    """Every tensor that persists, is kept for backward, or is alive at the peak; the largest together first."""
    counts: dict[tuple[Tensor, int], tuple[list[int], Sizes]] = {}

    def note(tensor: Tensor, sizes: Sizes, total: int, at_peak: int) -> None:
        entry, _ = counts.setdefault((tensor, storage_bytes(tensor, sizes)), ([0, 0], sizes))
        entry[0] += total
        entry[1] += at_peak

    for tensor, count, sizes in memory.persistent():
        note(tensor, sizes, count, count)
    for tensor, sizes, count in _kept(memory):
        note(tensor, sizes, count, 0)
    for (tensor, size), count in memory.timeline.alive_at_peak().items():
        if count:
            sizes = next(run.sizes for run in memory.runs if storage_bytes(tensor, run.sizes) == size)
            note(tensor, sizes, 0, count)
    origins = memory.step.origins
    entries = [
        _entry(tensor, size, max(total, at_peak), at_peak, sizes, origins.get(tensor.name, ""), library)
        for (tensor, size), ((total, at_peak), sizes) in counts.items()
        if total or at_peak
    ]
    return tuple(sorted(entries, key=lambda entry: -entry.bytes * entry.count))


def _kept(memory: StepMemory) -> Iterator[tuple[Tensor, Sizes, int]]:
    """What forward leaves for backward."""
    for span in memory.timeline.spans:
        if span.stretch.phase is not Phase.FORWARD:
            return
        for tensor, count in span.stretch.program.net.items():
            yield tensor, span.stretch.sizes, count * span.stretch.count


def _entry(tensor: Tensor, size: int, count: int, at_peak: int, sizes: Sizes, origin: str, library: str) -> TensorEntry:
    return TensorEntry(
        name=tensor.name,
        kind=tensor.kind,
        shape=tuple(
            (str(dimension), dimension if isinstance(dimension, int) else sizes[dimension])
            for dimension in tensor.shape
        ),
        dtype=tensor.dtype.label,
        bytes=size,
        count=count,
        count_at_peak=at_peak,
        alive=ALIVE[tensor.kind],
        source=f"{library}, {origin}" if origin else library,
    )
