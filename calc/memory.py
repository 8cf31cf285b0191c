"""Memory of one training step: what persists between steps, and the timeline of the steady one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from .dimensions import SMALLEST_PAGED
from .ledger import Kind, Tensor
from .outline import Outline, Place
from .parts import Part, Sum
from .plan import Plan, Workload
from .scenario import Optimizer
from .sizes import Sizes, Table
from .step import Step
from .timeline import Surplus, Timeline, timeline

NUM_MOMENTS = 2
"""Of AdamW, each a byte per element where it is paged."""
PERSISTENT_KINDS: tuple[Kind, ...] = (
    Kind.PARAMETERS,
    Kind.WEIGHT_EMA,
    Kind.GRADIENTS,
    Kind.OPTIMIZER_STATES,
    Kind.BUFFERS,
    Kind.INPUTS,
)


@dataclass(frozen=True)
class Run:
    """`count` equal parts of the step, with their sizes."""

    part: Part
    count: int
    sizes: Sizes
    first_layer: int | None = None
    """The index of its first layer; None for embedding and head."""


@dataclass(frozen=True)
class StepMemory:
    """One step's outline with sizes put in. Bytes are exact integers."""

    outline: Outline
    sizes: tuple[Sizes, ...]
    """The different sizes of its parts."""
    workload: Workload
    plan: Plan

    @property
    def step(self) -> Step:
        return self.outline.step

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the model is given."""
        return self.step.inputs

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """What lives between steps and belongs to no part."""
        return self.step.buffers

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The parts in the order of forward: embedding, layers, head."""
        places = self.outline.places
        return tuple(Run(place.part, place.count, self.sizes[place.group], place.first_layer) for place in places)

    @property
    def layers(self) -> tuple[Place, ...]:
        """The places of layers."""
        return self.outline.layers

    @cached_property
    def tables(self) -> list[Table]:
        """All that is summed, computed at once, for each of `sizes`."""
        return [measures.table(sizes) for measures, sizes in zip(self.outline.measures, self.sizes, strict=True)]

    def sums(self, which: Sum) -> dict[Any, int]:
        """One sum over all parts of the step, by what it is told apart by."""
        tables = self.tables
        return {name: total.of(tables) for name, total in self.outline.totals[which].items()}

    def total(self, which: Sum) -> int:
        return sum(self.sums(which).values())

    @property
    def structure(self) -> object:
        """All that the counts of its tensors depend on beside sizes."""
        return self.outline

    @property
    def origins(self) -> Mapping[str, str]:
        """What makes each tensor, by its name."""
        return self.step.origins

    def persistent(self) -> Iterator[Surplus]:
        """Everything alive between steps."""
        return self.outline.persistent()

    @cached_property
    def persistent_bytes(self) -> dict[Kind, int]:
        """Bytes alive between steps, by kind."""
        return dict.fromkeys(PERSISTENT_KINDS, 0) | self.sums(Sum.PERSISTENT)

    @property
    def paged_bytes(self) -> int:
        """Optimizer states in CUDA's managed memory: outside the allocator, and evicted to the host when needed."""
        if self.plan.optimizer is not Optimizer.PAGED_ADAMW_8BIT:
            return 0
        numels = ((run.count, run.sizes[tensor.shape]) for run in self.runs for tensor in run.part.trained)
        return sum(count * NUM_MOMENTS * numel for count, numel in numels if numel >= SMALLEST_PAGED)

    @cached_property
    def timeline(self) -> Timeline:
        """The steady step."""
        return timeline(sum(self.persistent_bytes.values()), self.outline.course, self.tables)

    @cached_property
    def forward_end_bytes(self) -> int:
        """Allocated at the end of the first micro-batch's forward."""
        return self.timeline.spans[self.outline.num_forward_stretches - 1].end_bytes

    @cached_property
    def first_step_peak_bytes(self) -> int:
        """The peak of the first step: it begins without optimizer states, and without gradients of a step before."""
        if self.plan.recipe:
            return self.timeline.peak_bytes
        outline, steady, persistent = self.outline, self.timeline, self.persistent_bytes
        missing = persistent[Kind.OPTIMIZER_STATES] + persistent[Kind.GRADIENTS]
        if self.step.batches is not None:
            return steady.peak_bytes - missing
        update = outline.update
        before, updating, start_bytes = steady.peaks[: update.start], steady.peaks[update], steady.start_bytes(update)
        if outline.before_first_update is not None:
            first = timeline(steady.base_bytes, outline.before_first_update, self.tables)
            before, start_bytes = first.peaks, first.end_bytes
        start_bytes -= persistent[Kind.GRADIENTS]
        if not self.step.optimizer.makes_states_first:
            start_bytes -= persistent[Kind.OPTIMIZER_STATES]
            updating = timeline(start_bytes, outline.first_update, self.tables).peaks
        return max(start_bytes, *updating, max(before) - missing)

    @cached_property
    def hooks_bytes(self) -> int:
        """What saved-tensor hooks see in one forward, each storage once, parameters left out."""
        return self.total(Sum.SAVED)

    @property
    def offloaded_bytes(self) -> int:
        """What one micro-batch keeps in host memory; it crosses the link there and back."""
        return self.total(Sum.OFFLOADED)

    @property
    def saved_per_layer_bytes(self) -> dict[int, int]:
        """What each part of a run adds to what forward leaves for backward, by how many layers there are up to the
        run's end."""
        added = dict.fromkeys(self.outline.layers, 0)
        for (place, _), span in zip(self.outline.forward_pass, self.timeline.spans, strict=False):
            if place in added:
                added[place] += span.net_bytes
        ends = accumulate(place.count * place.part.num_layers for place in added)
        return dict(zip(ends, added.values(), strict=True))
