"""Memory through one step: the events of all sections in order, then with real sizes.

A section's events are the same for each of its `count` parts, so a part is summed once and the parts follow by
arithmetic; the work does not grow with the number of layers.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import accumulate, chain
from typing import NamedTuple

from .ledger import Kind, Tensor
from .lifetimes import Event
from .sizes import Table, Total, number_of, picker, storage_class

Surplus = tuple[int, Mapping[Tensor, int], int]
"""Which of the step's different sizes, tensors with a count each, and how many times that."""


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
        numbers = map(number_of, map(storage_class, self.tensors))
        self.steps = tuple([number if made else -number for number, (_, made) in zip(numbers, events, strict=True)])

    @classmethod
    def in_a_row(cls, programs: Iterable[tuple["Program", int]]) -> "Program":
        """Several programs, each so many times in a row."""
        programs = [(program, times) for program, times in programs if program.steps and times]
        if len(programs) == 1 and programs[0][1] == 1:
            return programs[0][0]
        whole = cls(())
        net: defaultdict[Tensor, int] = defaultdict(int)
        for program, times in programs:
            for tensor, count in program.net.items():
                net[tensor] += count * times
        whole.net = {tensor: count for tensor, count in net.items() if count}
        whole.steps = tuple(chain.from_iterable(program.steps * times for program, times in programs))
        whole.tensors = tuple(chain.from_iterable(program.tensors * times for program, times in programs))
        return whole

    @cached_property
    def net(self) -> dict[Tensor, int]:
        """What it leaves behind: how many more times each tensor was allocated than freed."""
        return _surplus(self.tensors, self.steps)

    @cached_property
    def net_by_kind(self) -> Counter[tuple[Kind, int]]:
        """The same by kind and the number of the storage class."""
        return _by_kind(self.net)

    @cached_property
    def numbers(self) -> frozenset[int]:
        """Those of its tensors' storage classes."""
        return frozenset(map(abs, self.steps))

    @cached_property
    def changes(self) -> Callable[[Table], tuple[int, ...]]:
        """The change in allocated bytes by each event."""
        return picker(self.steps)

    def running_bytes(self, table: Table) -> list[int]:
        """The change in allocated bytes after each event; [0] where there is none."""
        return list(accumulate(self.changes(table))) or [0]


def _by_kind(surplus: Mapping[Tensor, int]) -> Counter[tuple[Kind, int]]:
    counts: Counter[tuple[Kind, int]] = Counter()
    for tensor, count in surplus.items():
        counts[tensor.kind, number_of(storage_class(tensor))] += count
    return counts


def _surplus(tensors: Sequence[Tensor], steps: Sequence[int]) -> dict[Tensor, int]:
    """How many more times each tensor was allocated than freed."""
    surplus: defaultdict[Tensor, int] = defaultdict(int)
    for tensor, step in zip(tensors, steps, strict=True):
        surplus[tensor] += 1 if step > 0 else -1
    return {tensor: count for tensor, count in surplus.items() if count}


class Stretch(NamedTuple):
    """`times` equal programs, one after another, of one phase."""

    phase: Phase
    label: str
    program: Program
    group: int = 0
    """Which of the step's different sizes its tensors have."""
    times: int = 1
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


class Moment(NamedTuple):
    """How far a step has come: so many stretches, parts of the next one, events of the next part."""

    stretches: int
    parts: int
    events: int


@dataclass(frozen=True, eq=False)
class Course:
    """Stretches in their order, whatever the sizes."""

    stretches: tuple[Stretch, ...]

    @cached_property
    def phases(self) -> Mapping[Phase, Sequence[int]]:
        """Those there are, in their order, and the numbers of each one's stretches."""
        phases: dict[Phase, list[int]] = {}
        for number, stretch in enumerate(self.stretches):
            phases.setdefault(stretch.phase, []).append(number)
        return phases

    def numbers(self, group: int) -> frozenset[int]:
        """Those of the storage classes of all tensors with one of the sizes."""
        return frozenset[int]().union(*(program.numbers for other, program in self.distinct if other == group))

    @cached_property
    def distinct(self) -> Mapping[tuple[int, Program], int]:
        """Which of the step's different sizes and what happens with them, each once, with its place among these."""
        keys = dict.fromkeys((each.group, each.program) for each in self.stretches)
        return {key: place for place, key in enumerate(keys)}

    @cached_property
    def places(self) -> Sequence[int]:
        """Of each stretch the place among those."""
        return [self.distinct[each.group, each.program] for each in self.stretches]

    def alive(self, moment: Moment) -> Iterator[Surplus]:
        """What has been allocated by `moment` and not freed."""
        for (group, program), times in self._run_by(moment).items():
            yield group, program.net, times
        yield self.stretches[moment.stretches].group, self._begun_by(moment), 1

    def _run_by(self, moment: Moment) -> Mapping[tuple[int, Program], int]:
        """How often what has been run as a whole."""
        times: Counter[tuple[int, Program]] = Counter()
        for stretch in self.stretches[: moment.stretches]:
            times[stretch.group, stretch.program] += stretch.times
        last = self.stretches[moment.stretches]
        times[last.group, last.program] += moment.parts
        return times

    def _begun_by(self, moment: Moment) -> dict[Tensor, int]:
        """What the part that is running has left so far."""
        program = self.stretches[moment.stretches].program
        return _surplus(program.tensors[: moment.events], program.steps[: moment.events])

    def alive_by_kind(self, moment: Moment) -> Mapping[Kind, Total]:
        """The storages of the same; it depends on no size, and the peaks of most sizes are at one moment."""
        if moment not in self._known:
            self._known[moment] = self._alive_by_kind(moment)
        return self._known[moment]

    def _alive_by_kind(self, moment: Moment) -> Mapping[Kind, Total]:
        counts: defaultdict[Kind, Counter[tuple[int, int]]] = defaultdict(Counter)
        run = [(group, program.net_by_kind, times) for (group, program), times in self._run_by(moment).items()]
        begun = self.stretches[moment.stretches].group, _by_kind(self._begun_by(moment)), 1
        for group, left, times in (*run, begun):
            for (kind, number), count in left.items():
                counts[kind][group, number] += count * times
        return {kind: Total(each) for kind, each in counts.items()}

    @cached_property
    def _known(self) -> dict[Moment, Mapping[Kind, Total]]:
        return {}


class Span(NamedTuple):
    """A stretch with its bytes."""

    stretch: Stretch
    start_bytes: int
    net_bytes: int
    """What each part adds."""
    highest_bytes: int
    """How far the first part rises above the start."""

    @property
    def peak_bytes(self) -> int:
        """The highest point, the start included."""
        return self.start_bytes + self.peak_part * self.net_bytes + self.highest_bytes

    @property
    def end_bytes(self) -> int:
        return self.start_bytes + self.stretch.times * self.net_bytes

    @property
    def peak_part(self) -> int:
        """Which part has the highest point: the last, where parts add up."""
        return self.stretch.times - 1 if self.net_bytes > 0 else 0


@dataclass(frozen=True, eq=False)
class Timeline:
    """The whole step: `base_bytes` persistent bytes, then a span for each stretch."""

    course: Course
    tables: Sequence[Table]
    """Of each of the step's different sizes."""
    base_bytes: int
    spans: tuple[Span, ...]
    peaks: list[int]
    """The highest point of each; 0 of one that is not drawn."""

    @cached_property
    def peak(self) -> Span:
        """The span with the highest point, the earliest of equals."""
        return self.spans[self.peak_moment.stretches]

    @cached_property
    def peak_bytes(self) -> int:
        return max(self.peaks)

    @cached_property
    def peak_moment(self) -> Moment:
        """The earliest of equals."""
        index = self.peaks.index(self.peak_bytes)
        span = self.spans[index]
        if not span.highest_bytes:
            return Moment(index, span.peak_part, 0)
        running = span.stretch.program.running_bytes(self.tables[span.stretch.group])
        return Moment(index, span.peak_part, running.index(span.highest_bytes) + 1)

    @property
    def end_bytes(self) -> int:
        return self.spans[-1].end_bytes

    def start_bytes(self, part: slice) -> int:
        """Before `part` of its spans."""
        return self.spans[part.start].start_bytes

    @property
    def phases(self) -> list[Phase]:
        """Those there are, in their order."""
        return list(self.course.phases)

    def phase_peak_bytes(self, phase: Phase) -> int:
        return max([self.peaks[number] for number in self.course.phases[phase]])

    def phase_end_bytes(self, phase: Phase) -> int:
        return self.spans[self.course.phases[phase][-1]].end_bytes

    def peak_by_kind(self, persistent_bytes: Mapping[Kind, int]) -> dict[Kind, int]:
        """What persists, and what the step has allocated at its peak: the parts of the peak, which add up to it."""
        totals = dict.fromkeys(Kind, 0) | dict(persistent_bytes)
        for kind, alive in self.course.alive_by_kind(self.peak_moment).items():
            totals[kind] += alive.of(self.tables)
        return totals

    def up_to_peak(self) -> Iterator[Surplus]:
        """What the step has allocated by its peak and not freed."""
        return self.course.alive(self.peak_moment)


def timeline(base_bytes: int, course: Course, tables: Sequence[Table]) -> Timeline:
    """Sum the stretches in their order, from `base_bytes` on."""
    spans, peaks = [], []
    level = base_bytes
    summed = [_summed(program.running_bytes(tables[group])) for group, program in course.distinct]
    for stretch, place in zip(course.stretches, course.places, strict=True):
        net, highest = summed[place]
        spans.append(Span(stretch, level, net, highest))
        grown = stretch.times * net
        peaks.append(level + highest + (grown - net if net > 0 else 0) if stretch.is_drawn else 0)
        level += grown
    return Timeline(course, tables, base_bytes, tuple(spans), peaks)


def _summed(running_bytes: list[int]) -> tuple[int, int]:
    """What is left in the end, and how far it rises above the start."""
    return running_bytes[-1], max(0, max(running_bytes))
