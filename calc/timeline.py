"""Memory through one step: the events of all sections in order, with real sizes.

A section's events are the same for each of its `count` parts, so a part is summed once and the parts follow by arithmetic; the work does not grow
with the number of layers.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import accumulate

from .ledger import Sizes, Tensor, numel
from .lifetimes import Event

ALLOCATION_UNIT_BYTES = 512
"""CUDACachingAllocator's kMinBlockSize: every storage is rounded up to it (c10/cuda/CUDACachingAllocator.cpp)."""


class Phase(StrEnum):
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


def storage_bytes(tensor: Tensor, sizes: Sizes) -> int:
    """Bytes the allocator hands out for `tensor`."""
    return -(-tensor.nbytes(sizes) // ALLOCATION_UNIT_BYTES) * ALLOCATION_UNIT_BYTES


class Program:
    """Events prepared for being summed with many sizes.

    `steps` holds, per event, the number of its tensor's size class (shape and type), negative where it is freed.
    """

    def __init__(self, events: Sequence[Event]) -> None:
        classes: dict[tuple, int] = {}
        self.tensors = tuple(tensor for tensor, _ in events)
        self.steps = tuple(
            classes.setdefault((tensor.shape, tensor.dtype), len(classes) + 1) * (1 if allocated else -1)
            for tensor, allocated in events
        )
        self.classes = tuple((shape, dtype.itemsize) for shape, dtype in classes)
        self.net = _surplus(self.tensors, self.steps)

    def running_bytes(self, sizes: Sizes) -> list[int]:
        """The change in allocated bytes after each event."""
        unit = ALLOCATION_UNIT_BYTES
        rounded = [-(-numel(shape, sizes) * itemsize // unit) * unit for shape, itemsize in self.classes]
        signed = [0, *rounded, *(-size for size in reversed(rounded))]
        return list(accumulate(map(signed.__getitem__, self.steps)))


def _surplus(tensors: Sequence[Tensor], steps: Sequence[int]) -> dict[Tensor, int]:
    """How many more times each tensor was allocated than freed."""
    surplus: Counter[Tensor] = Counter()
    for tensor, step in zip(tensors, steps, strict=True):
        surplus[tensor] += 1 if step > 0 else -1
    return {tensor: count for tensor, count in surplus.items() if count}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """`count` equal programs, one after another, of one phase."""

    phase: Phase
    label: str
    program: Program
    sizes: Sizes
    count: int = 1
    first_layer: int | None = None
    """The index of the layer its first program belongs to."""

    @property
    def layer_step(self) -> int:
        """Backward goes down the layers."""
        return -1 if self.phase is Phase.BACKWARD else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch with its bytes: where it starts, what each part adds, how high and low the first part goes."""

    stretch: Stretch
    start_bytes: int
    net_bytes: int
    running: list[int]

    @property
    def end_bytes(self) -> int:
        return self.start_bytes + self.stretch.count * self.net_bytes

    @property
    def peak_bytes(self) -> int:
        """The highest point, the start included: in the first part or, where parts add up, in the last."""
        return self.start_bytes + self.peak_part * self.net_bytes + max(0, max(self.running, default=0))

    @property
    def peak_part(self) -> int:
        return self.stretch.count - 1 if self.net_bytes > 0 else 0


@dataclass(frozen=True)
class Timeline:
    """The whole step: `base_bytes` persistent bytes, then the spans."""

    base_bytes: int
    spans: tuple[Span, ...]

    @cached_property
    def peak(self) -> Span:
        """The span with the highest point, the earliest of equals."""
        return max(self.spans, key=lambda span: span.peak_bytes)

    def phase_peak_bytes(self, phase: Phase) -> int:
        return max(span.peak_bytes for span in self.spans if span.stretch.phase is phase)

    def phase_end_bytes(self, phase: Phase) -> int:
        return next(span.end_bytes for span in reversed(self.spans) if span.stretch.phase is phase)

    def alive_at_peak(self) -> Counter[tuple[Tensor, int]]:
        """The tensors allocated during the step that are alive at the peak, as (tensor, index of its span's sizes): how many."""
        alive: Counter[tuple[Tensor, int]] = Counter()
        for span in self.spans:
            if span is self.peak:
                _add(alive, span, span.stretch.program.net, span.peak_part)
                highest = max(0, max(span.running, default=0))
                top = span.running.index(highest) + 1 if highest else 0
                program = span.stretch.program
                _add(alive, span, _surplus(program.tensors[:top], program.steps[:top]), 1)
                break
            _add(alive, span, span.stretch.program.net, span.stretch.count)
        return alive


def _add(alive: Counter, span: Span, surplus: dict[Tensor, int], times: int) -> None:
    for tensor, count in surplus.items():
        alive[tensor, storage_bytes(tensor, span.stretch.sizes)] += count * times


def timeline(base_bytes: int, stretches: Sequence[Stretch]) -> Timeline:
    """Sum the stretches in their order, from `base_bytes` on."""
    spans = []
    level = base_bytes
    for stretch in stretches:
        running = stretch.program.running_bytes(stretch.sizes)
        span = Span(stretch=stretch, start_bytes=level, net_bytes=running[-1] if running else 0, running=running)
        spans.append(span)
        level = span.end_bytes
    return Timeline(base_bytes, tuple(spans))
