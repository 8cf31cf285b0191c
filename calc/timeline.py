"""Memory through one step: the events of all sections in order, with real sizes.

A section's events are the same for each of its `count` parts, so a part is summed once and the parts follow by
arithmetic; the work does not grow
with the number of layers.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import accumulate
from operator import attrgetter

from .ledger import Kind, Tensor
from .lifetimes import Event
from .sizes import Sizes, StorageClass, storage_class, storage_number

Surplus = tuple[Sizes, dict[Tensor, int], int]
"""Sizes, tensors with a count each, and how many times that."""


class Phase(StrEnum):
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    PREFILL = "prefill"
    """Of a generation the forward pass over the prompt,"""
    DECODE = "decode"
    """and the one that adds the last token."""


class Program:
    """Events prepared for being summed with many sizes.

    `steps` holds, per event, the number of its tensor's storage class, negative where it is freed.
    """

    def __init__(self, events: Sequence[Event]) -> None:
        self.tensors = tuple([tensor for tensor, _ in events])
        numbers = map(storage_number, map(storage_class, self.tensors))
        self.steps = tuple([number if made else -number for number, (_, made) in zip(numbers, events, strict=True)])

    @classmethod
    def in_a_row(cls, programs: Iterable[tuple["Program", int]]) -> "Program":
        """Several programs, each so many times in a row."""
        programs = [(program, times) for program, times in programs if program.steps and times]
        if len(programs) == 1 and programs[0][1] == 1:
            return programs[0][0]
        whole = cls(())
        net: Counter[Tensor] = Counter()
        for program, times in programs:
            whole.steps += program.steps * times
            whole.tensors += program.tensors * times
            for tensor, count in program.net.items():
                net[tensor] += count * times
        whole.net = {tensor: count for tensor, count in net.items() if count}
        return whole

    @cached_property
    def net(self) -> dict[Tensor, int]:
        """What it leaves behind: how many more times each tensor was allocated than freed."""
        return _surplus(self.tensors, self.steps)

    @cached_property
    def _net_by_kind(self) -> tuple[tuple[tuple[Kind, StorageClass], int], ...]:
        """The same by kind and storage class."""
        counts: Counter[tuple[Kind, StorageClass]] = Counter()
        for tensor, count in self.net.items():
            counts[tensor.kind, storage_class(tensor)] += count
        return tuple((key, count) for key, count in counts.items() if count)

    def running_bytes(self, sizes: Sizes) -> list[int]:
        """The change in allocated bytes after each event; [0] where there is none."""
        if not self.steps:
            return [0]
        return list(accumulate(map(sizes.changes.__getitem__, self.steps)))

    def add_by_kind(self, totals: dict[Kind, int], sizes: Sizes, times: int = 1) -> None:
        """Add what the whole program leaves behind, `times` times."""
        for (kind, storage), count in self._net_by_kind:
            totals[kind] += sizes[storage] * count * times

    def add_first_by_kind(self, totals: dict[Kind, int], sizes: Sizes, num_events: int) -> None:
        """Add what the first `num_events` events leave behind."""
        for tensor, step in zip(self.tensors[:num_events], self.steps, strict=False):
            totals[tensor.kind] += sizes.changes[step]


def _surplus(tensors: Sequence[Tensor], steps: Sequence[int]) -> dict[Tensor, int]:
    """How many more times each tensor was allocated than freed."""
    surplus: Counter[Tensor] = Counter()
    for tensor, step in zip(tensors, steps, strict=True):
        surplus[tensor] += 1 if step > 0 else -1
    return {tensor: count for tensor, count in surplus.items() if count}


@dataclass(slots=True, eq=False)
class Stretch:
    """`count` equal programs, one after another, of one phase. Not frozen, as a step has dozens and each estimate makes
    them anew."""

    phase: Phase
    label: str
    program: Program
    sizes: Sizes
    count: int = 1
    first_layer: int | None = None
    """The index of the layer its first program belongs to, or begins with."""
    num_layers: int = 1
    """How many layers each program is of."""
    is_drawn: bool = True
    """It is part of the curve and its peaks; else it stands for passes that are left out."""

    @property
    def layer_step(self) -> int:
        """Backward goes down the layers."""
        return -self.num_layers if self.phase is Phase.BACKWARD else self.num_layers


@dataclass(slots=True, eq=False)
class Span:
    """A stretch with its bytes."""

    stretch: Stretch
    start_bytes: int
    net_bytes: int
    """What each part adds."""
    highest_bytes: int
    """How far the first part rises above the start."""
    running: list[int]
    peak_bytes: int = field(init=False)
    """The highest point, the start included."""

    def __post_init__(self) -> None:
        self.peak_bytes = self.start_bytes + self.peak_part * self.net_bytes + self.highest_bytes

    @property
    def end_bytes(self) -> int:
        return self.start_bytes + self.stretch.count * self.net_bytes

    @property
    def peak_part(self) -> int:
        """Which part has the highest point: the last, where parts add up."""
        return self.stretch.count - 1 if self.net_bytes > 0 else 0

    @property
    def num_events_to_peak(self) -> int:
        """How many events of the peak's part have happened at it."""
        return self.running.index(self.highest_bytes) + 1 if self.highest_bytes else 0


@dataclass(frozen=True)
class Timeline:
    """The whole step: `base_bytes` persistent bytes, then the spans."""

    base_bytes: int
    spans: tuple[Span, ...]

    @cached_property
    def peak(self) -> Span:
        """The span with the highest point, the earliest of equals."""
        return max([span for span in self.spans if span.stretch.is_drawn], key=attrgetter("peak_bytes"))

    @property
    def phases(self) -> list[Phase]:
        """Those there are, in their order."""
        return list(dict.fromkeys([span.stretch.phase for span in self.spans]))

    def phase_peak_bytes(self, phase: Phase) -> int:
        return max(span.peak_bytes for span in self.spans if span.stretch.phase is phase and span.stretch.is_drawn)

    def phase_end_bytes(self, phase: Phase) -> int:
        return next(span.end_bytes for span in reversed(self.spans) if span.stretch.phase is phase)

    def peak_by_kind(self, persistent_bytes: Mapping[Kind, int]) -> dict[Kind, int]:
        """What persists, and what the step has allocated at its peak: the parts of the peak, which add up to it."""
        totals = dict.fromkeys(Kind, 0) | dict(persistent_bytes)
        for span in self.spans:
            stretch = span.stretch
            if span is self.peak:
                stretch.program.add_by_kind(totals, stretch.sizes, span.peak_part)
                stretch.program.add_first_by_kind(totals, stretch.sizes, span.num_events_to_peak)
                break
            stretch.program.add_by_kind(totals, stretch.sizes, stretch.count)
        return totals

    def up_to_peak(self) -> Iterator[Surplus]:
        """What the step has allocated by its peak and not freed."""
        for span in self.spans:
            stretch, program = span.stretch, span.stretch.program
            if span is self.peak:
                top = span.num_events_to_peak
                yield stretch.sizes, program.net, span.peak_part
                yield stretch.sizes, _surplus(program.tensors[:top], program.steps[:top]), 1
                return
            yield stretch.sizes, program.net, stretch.count


def timeline(base_bytes: int, stretches: Sequence[Stretch]) -> Timeline:
    """Sum the stretches in their order, from `base_bytes` on."""
    spans = []
    level = base_bytes
    for stretch in stretches:
        running = stretch.program.running_bytes(stretch.sizes)
        span = Span(stretch, level, running[-1], max(0, max(running)), running)
        spans.append(span)
        level = span.end_bytes
    return Timeline(base_bytes, tuple(spans))
