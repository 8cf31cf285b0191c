"""Memory of one training step: what persists between steps, and the timeline of the steady one."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from .adapters.facts import REGULARISATION
from .contexts import CacheEnd
from .dimensions import SMALLEST_PAGED
from .evaluation import Batches
from .ledger import Kind, Tensor
from .optimizer_step import Pass
from .optimizers import gradients_persist
from .parts import Part, Sum
from .plan import Plan, Workload
from .scenario import Optimizer
from .sizes import Counts, Sizes, storage_bytes
from .step import Layout, Step, merged
from .timeline import Phase, Program, Stretch, Surplus, Timeline, timeline

NUM_FORWARD_STRETCHES = 2
"""Of each run: its forward, and what autocast's cache gives back at the end of it."""
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


Structure = tuple[Any, ...]


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
    """One step's runs and everything that is summed over them. Bytes are exact integers."""

    step: Step
    runs: tuple[Run, ...]
    buffers: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    workload: Workload
    plan: Plan

    @cached_property
    def sizes(self) -> list[Sizes]:
        """The different sizes of the runs."""
        return list({id(run.sizes): run.sizes for run in self.runs}.values())

    @cached_property
    def layout(self) -> Layout:
        which = {id(sizes): number for number, sizes in enumerate(self.sizes)}
        return tuple([(run.count, which[id(run.sizes)]) for run in self.runs])

    @cached_property
    def merged(self) -> Mapping[Sum, Mapping[Any, tuple[Counts, ...]]]:
        """What is summed over the step, a Counts for each of `sizes`."""
        return merged(self.step, self.layout)

    def sums(self, which: Sum) -> dict[Any, int]:
        """One sum over all parts of the step, by what it is told apart by."""
        each = self.sizes
        return {
            name: sum([counts.summed(sizes) for counts, sizes in zip(by_size, each, strict=True)])
            for name, by_size in self.merged[which].items()
        }

    def total(self, which: Sum) -> int:
        return sum(self.sums(which).values())

    @property
    def structure(self) -> Structure:
        """All that the counts of its tensors depend on beside sizes."""
        return self.step, self.layout, self.buffers, self.inputs

    @property
    def origins(self) -> Mapping[str, str]:
        """What makes each tensor, by its name."""
        return self.step.origins

    @property
    def layers(self) -> tuple[Run, ...]:
        """The runs of layers."""
        return self.runs[1:-1]

    def persistent(self) -> Iterator[Surplus]:
        """Everything alive between steps."""
        for run in self.runs:
            yield run.sizes, Counter(run.part.persistent), run.count
        yield self.runs[0].sizes, dict.fromkeys((*self.buffers, *self.inputs), 1), 1

    @cached_property
    def persistent_bytes(self) -> dict[Kind, int]:
        """Bytes alive between steps, by kind."""
        totals: dict[Kind, int] = dict.fromkeys(PERSISTENT_KINDS, 0) | self.sums(Sum.PERSISTENT)
        for tensor in (*self.buffers, *self.inputs):
            totals[tensor.kind] += storage_bytes(tensor, self.runs[0].sizes)
        return totals

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
        return timeline(sum(self.persistent_bytes.values()), list(self._stretches()))

    @cached_property
    def forward_end_bytes(self) -> int:
        """Allocated at the end of the first micro-batch's forward."""
        num_stretches = NUM_FORWARD_STRETCHES * len(self.runs) + len(list(self._regularisation(Phase.FORWARD)))
        return self.timeline.spans[num_stretches - 1].end_bytes

    @cached_property
    def first_step_peak_bytes(self) -> int:
        """The peak of the first step: it begins without optimizer states, and without gradients of a step before."""
        if self.plan.recipe:
            return self.timeline.peak.peak_bytes
        phase, spans = self.step.optimizer, self.timeline.spans
        missing = self.persistent_bytes[Kind.OPTIMIZER_STATES] + self.persistent_bytes[Kind.GRADIENTS]
        if self.step.batches is not None:
            return self.timeline.peak.peak_bytes - missing
        num_ending = len(list(self.optimizer_phase(phase.ending)))
        num_updating = len(list(self.optimizer_phase(phase.update)))
        before, updating = spans[: -num_updating - num_ending], spans[-num_updating - num_ending : -num_ending]
        if gradients_persist(self.plan):
            stretches = [*self._micro_batches(gradients_exist=False), *self.optimizer_phase(phase.clipping)]
            before = timeline(self.timeline.base_bytes, stretches).spans
        start_bytes = before[-1].end_bytes - self.persistent_bytes[Kind.GRADIENTS]
        if not phase.makes_states_first:
            start_bytes -= self.persistent_bytes[Kind.OPTIMIZER_STATES]
            updating = timeline(start_bytes, list(self.optimizer_phase(phase.first_update))).spans
        highest = max((start_bytes, *(span.peak_bytes for span in updating)))
        return max(highest, *(span.peak_bytes - missing for span in before))

    @cached_property
    def hooks_bytes(self) -> int:
        """What saved-tensor hooks see in one forward, each storage once, parameters left out."""
        return self.total(Sum.SAVED) + sum(map(self.runs[0].sizes.__getitem__, self.step.saved_by_several))

    @property
    def offloaded_bytes(self) -> int:
        """What one micro-batch keeps in host memory; it crosses the link there and back."""
        return self.total(Sum.OFFLOADED)

    @property
    def saved_per_layer_bytes(self) -> dict[int, int]:
        """What each part of a run adds to what forward leaves for backward, by how many layers there are up to the
        run's end."""
        ends = accumulate(run.count * run.part.num_layers for run in self.runs[1:-1])
        spans = zip(ends, self._layer_spans(0), self._layer_spans(1), strict=True)
        return {end: made.net_bytes + dropped.net_bytes for end, made, dropped in spans}

    def _layer_spans(self, which: int) -> list:
        """The spans of the layers in the first micro-batch: of forward (0), or of forward's end (1)."""
        num_runs = len(self.runs)
        return list(self.timeline.spans[which * num_runs + 1 : (which + 1) * num_runs - 1])

    def _stretches(self) -> Iterator[Stretch]:
        if self.step.batches is not None:
            yield from self.evaluation(self.step.batches)
            return
        yield from self._micro_batches(gradients_exist=gradients_persist(self.plan))
        yield from self.optimizer_phase(self.step.optimizer.steady)

    def _micro_batches(self, *, gradients_exist: bool) -> Iterator[Stretch]:
        """The first, and one that stands for all later."""
        for later in range(min(self.workload.gradient_accumulation_steps, 2)):
            yield from self.micro_batch(later=bool(later) or gradients_exist)

    def micro_batch(self, *, later: bool) -> Iterator[Stretch]:
        """Forward and backward; `later`: backward finds gradients and adds to them."""
        runs = self.runs
        yield from self.forward(Phase.FORWARD)
        yield from self._regularisation(Phase.FORWARD)
        yield Stretch(phase=Phase.BACKWARD, label="loss", program=self.step.between, sizes=runs[-1].sizes)
        yield from self._cache(CacheEnd.OUTPUTS_BEFORE_BACKWARD)
        yield Stretch(phase=Phase.BACKWARD, label="loss", program=self.step.begin, sizes=runs[-1].sizes)
        yield from self._regularisation(Phase.BACKWARD)
        for run in reversed(runs):
            yield _stretch(Phase.BACKWARD, run, run.part.backward_later if later else run.part.backward)
        yield from self._cache(CacheEnd.OUTPUTS_AFTER_BACKWARD)
        yield Stretch(phase=Phase.BACKWARD, label="end", program=self.step.finish, sizes=runs[-1].sizes)
        for run in runs:
            if run.part.graph_end.steps:
                yield _stretch(Phase.BACKWARD, run, run.part.graph_end)

    def forward(self, phase: Phase) -> Iterator[Stretch]:
        """One forward pass."""
        for run in self.runs:
            yield _stretch(phase, run, run.part.forward)
        for run in self.runs:
            yield _stretch(phase, run, run.part.forward_end)

    def _regularisation(self, phase: Phase) -> Iterator[Stretch]:
        """What is added to the loss for each part's weights: after it in forward, before it in backward."""
        around, sizes = self.step.regularisation, self.runs[-1].sizes
        if around is None:
            return
        regularised = [run for run in self.runs if run.part.regularisation]
        forward = phase is Phase.FORWARD
        first, last = around[:2] if forward else around[2:]
        yield Stretch(phase=phase, label=REGULARISATION.name, program=first, sizes=sizes)
        for run in regularised if forward else reversed(regularised):
            part = run.part
            program = part.regularised if forward else part.regularised_backward
            yield Stretch(phase=phase, label=REGULARISATION.name, program=program, sizes=run.sizes, count=run.count)
        yield Stretch(phase=phase, label=REGULARISATION.name, program=last, sizes=sizes)

    def evaluation(self, batches: Batches) -> Iterator[Stretch]:
        """The first batch, and the last of those whose logits are kept."""
        sizes = self.runs[-1].sizes
        yield from self.forward(Phase.FORWARD)
        yield Stretch(phase=Phase.FORWARD, label="logits", program=batches.after_first, sizes=sizes)
        if self.plan.eval_accumulation_steps > 1:
            yield Stretch(phase=Phase.FORWARD, label="logits", program=batches.before_last, sizes=sizes)
            yield from self.forward(Phase.FORWARD)
            yield Stretch(phase=Phase.FORWARD, label="logits", program=batches.after_last, sizes=sizes)

    def _cache(self, end: CacheEnd) -> Iterator[Stretch]:
        """The end of the keys and values that the outputs hold."""
        if self.step.cache_end is end:
            for run in self.runs:
                if run.part.section.cached:
                    yield _stretch(Phase.BACKWARD, run, run.part.outputs_end)

    def optimizer_phase(self, passes: tuple[Pass, ...]) -> Iterator[Stretch]:
        """Clipping, step(), the averaged weights, zero_grad()."""
        for each in passes:
            for run, (first, later) in zip(self.runs, each.parts or [], strict=bool(each.parts)):
                if first is later or run.count == 1:
                    yield _stretch(Phase.OPTIMIZER, run, first)
                else:
                    yield _stretch(Phase.OPTIMIZER, replace(run, count=1), first)
                    yield _stretch(Phase.OPTIMIZER, replace(run, count=run.count - 1), later)
            if each.end is not None:
                yield _stretch(Phase.OPTIMIZER, self.runs[-1], each.end)


def _stretch(phase: Phase, run: Run, program: Program) -> Stretch:
    first = run.first_layer
    if first is not None and phase is Phase.BACKWARD:
        first += (run.count - 1) * run.part.num_layers
    return Stretch(
        phase=phase,
        label=run.part.section.name,
        program=program,
        sizes=run.sizes,
        count=run.count,
        first_layer=first,
        num_layers=run.part.num_layers,
    )
