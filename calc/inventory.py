"""The tensors behind every sum of an Estimate."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from .ledger import Dimension, Kind, Tensor
from .memory import StepMemory
from .sizes import Sizes, storage_bytes
from .timeline import Phase, Surplus


class Description(NamedTuple):
    """What equal tensors are, whatever their sizes."""

    name: str
    kind: Kind
    dtype: str
    alive: str
    """From when to when."""
    formula: str
    """`B·S·H × 2 bytes`: its shape is its formula."""
    source: str
    """What makes it, in which module of which library."""
    dimensions: tuple[tuple[str, Dimension], ...]
    """How each dimension is written, and what its size is found by."""


@dataclass(slots=True)
class TensorEntry:
    """Equal tensors of one step: what they are, how many, and how many of them are alive at the peak.

    Not frozen, because a step has a hundred of them.
    """

    description: Description
    shape: tuple[tuple[str, int], ...]
    """(symbol, size) per dimension; a literal dimension is its own symbol."""
    bytes: int
    """Of one, as allocated."""
    count: int
    """How many there are in the step; of temporaries, how many at the peak."""
    count_at_peak: int

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def kind(self) -> Kind:
        return self.description.kind

    @property
    def dtype(self) -> str:
        return self.description.dtype

    @property
    def alive(self) -> str:
        return self.description.alive

    @property
    def formula(self) -> str:
        return self.description.formula

    @property
    def source(self) -> str:
        return self.description.source

    def to_dict(self) -> dict[str, Any]:
        described = self.description
        return {
            "name": described.name,
            "kind": described.kind,
            "shape": self.shape,
            "dtype": described.dtype,
            "bytes": self.bytes,
            "count": self.count,
            "count_at_peak": self.count_at_peak,
            "alive": described.alive,
            "formula": described.formula,
            "source": described.source,
        }


ALIVE = {
    Kind.PARAMETERS: "always",
    Kind.WEIGHT_EMA: "always",
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
    origins = memory.step.origins
    entries = [
        _entry(tensor, size, each, library, origins.get(tensor.name))
        for (tensor, size), each in _counted(memory).items()
        if size and (each.total or each.at_peak)
    ]
    return tuple(sorted(entries, key=lambda entry: -entry.bytes * entry.count))


def largest_at_peak(tensors: Iterable[TensorEntry], count: int = 10) -> list[TensorEntry]:
    """The `count` entries of `tensors` that take most at the peak."""
    alive = [entry for entry in tensors if entry.count_at_peak]
    return sorted(alive, key=lambda entry: -entry.bytes * entry.count_at_peak)[:count]


class _Count(NamedTuple):
    sizes: Sizes
    total: int
    at_peak: int


def _counted(memory: StepMemory) -> dict[tuple[Tensor, int], _Count]:
    """By tensor and bytes: how many there are, and how many at the peak."""
    persistent = list(memory.persistent())
    total = _by_sizes([*persistent, *_kept(memory)])
    at_peak = _by_sizes([*persistent, *memory.timeline.up_to_peak()])
    counted: dict[tuple[Tensor, int], _Count] = {}
    for key, (sizes, of_total) in total.items():
        _, of_peak = at_peak[key]
        for tensor in of_total | of_peak:
            place = tensor, storage_bytes(tensor, sizes)
            _, before, before_peak = counted.get(place, (sizes, 0, 0))
            counted[place] = _Count(sizes, before + of_total[tensor], before_peak + of_peak[tensor])
    return counted


def _by_sizes(surpluses: Iterable[Surplus]) -> dict[int, tuple[Sizes, defaultdict[Tensor, int]]]:
    """The tensors counted, apart for each set of sizes."""
    sums: dict[int, tuple[Sizes, defaultdict[Tensor, int]]] = {}
    for sizes, surplus, times in surpluses:
        _, counts = sums.setdefault(id(sizes), (sizes, defaultdict(int)))
        for tensor, count in surplus.items():
            counts[tensor] += count * times
    return sums


def _kept(memory: StepMemory) -> Iterator[Surplus]:
    """What forward leaves for backward."""
    for span in memory.timeline.spans:
        if span.stretch.phase is not Phase.FORWARD:
            return
        yield span.stretch.sizes, span.stretch.program.net, span.stretch.count


def _entry(tensor: Tensor, size: int, each: _Count, library: str, place: str | None) -> TensorEntry:
    description = _described(tensor, library, place)
    sizes, total, at_peak = each
    shape = tuple([(symbol, sizes[dimension]) for symbol, dimension in description.dimensions])
    return TensorEntry(description, shape, size, max(total, at_peak), at_peak)


@lru_cache(maxsize=2**14)
def _described(tensor: Tensor, library: str, place: str | None) -> Description:
    symbols = tuple(map(str, tensor.shape))
    return Description(
        name=tensor.name,
        kind=tensor.kind,
        dtype=tensor.dtype.label,
        alive=ALIVE[tensor.kind],
        formula=f"{'·'.join(symbols) or '1'} × {tensor.dtype.itemsize} bytes",
        source=f"{library}, {place}" if place else library,
        dimensions=tuple(zip(symbols, tensor.shape, strict=True)),
    )
