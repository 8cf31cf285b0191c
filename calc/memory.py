"""Memory of one training step: what persists between steps, and the timeline of the steady one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from .dtype import DType
from .ledger import Kind, Tensor
from .optimizers import uses_grad_scaler
from .plan import Plan, Workload
from .sizes import Sizes, storage_bytes
from .step import Part, Step
from .timeline import Phase, Program, Stretch, Surplus, Timeline, timeline

GRAD_SCALER = tuple(
    Tensor(f"GradScaler.{name}", (), DType.FP32, Kind.BUFFERS) for name in ("_scale", "_growth_tracker")
)
"""torch/amp/grad_scaler.py: two scalars on the device."""

_FOUND_INF = Tensor("GradScaler.found_inf", (), DType.FP32, Kind.TEMPORARIES)
_INVERSE_SCALE = [replace(_FOUND_INF, name=f"GradScaler.scale.{part}") for part in ("double", "reciprocal", "float")]
UNSCALE = Program(
    [(tensor, True) for tensor in (*_INVERSE_SCALE, _FOUND_INF)] + [(tensor, False) for tensor in _INVERSE_SCALE]
)
"""GradScaler.unscale_: the inverse of the scale by way of fp64, and a flag that lives until update()."""
SCALER_UPDATE = Program([(_FOUND_INF, False)])

PERSISTENT_KINDS: tuple[Kind, ...] = (Kind.PARAMETERS, Kind.GRADIENTS, Kind.OPTIMIZER_STATES, Kind.BUFFERS, Kind.INPUTS)


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

    def persistent(self) -> Iterator[Surplus]:
        """Everything alive between steps."""
        for run in self.runs:
            yield run.sizes, dict.fromkeys(run.part.persistent, 1), run.count
        yield self.runs[0].sizes, dict.fromkeys((*self.buffers, *self.inputs), 1), 1

    @cached_property
    def persistent_bytes(self) -> dict[Kind, int]:
        """Bytes alive between steps, by kind."""
        totals: dict[Kind, int] = dict.fromkeys(PERSISTENT_KINDS, 0)
        for run in self.runs:
            for kind, classes in run.part.persistent_classes.items():
                totals[kind] += run.count * sum(map(run.sizes.__getitem__, classes))
        for tensor in (*self.buffers, *self.inputs):
            totals[tensor.kind] += storage_bytes(tensor, self.runs[0].sizes)
        return totals

    @cached_property
    def timeline(self) -> Timeline:
        """The steady step."""
        return timeline(sum(self.persistent_bytes.values()), list(self._stretches()))

    @cached_property
    def at_peak_bytes(self) -> dict[Kind, int]:
        """The parts of the peak, by kind; they add up to it."""
        parts = dict.fromkeys(Kind, 0) | self.persistent_bytes
        self.timeline.add_peak_by_kind(parts)
        return parts

    @cached_property
    def forward_end_bytes(self) -> int:
        """Allocated at the end of the first micro-batch's forward."""
        spans = self.timeline.spans
        return next(span.start_bytes for span in spans if span.stretch.phase is Phase.BACKWARD)

    @cached_property
    def first_step_peak_bytes(self) -> int:
        """The peak of the first step: there are no optimizer states before `step()` itself makes them."""
        missing = 0 if self.plan.recipe else self.persistent_bytes[Kind.OPTIMIZER_STATES]
        updating = (span for span in self.timeline.spans if span.stretch.phase is Phase.OPTIMIZER)
        with_states = {id(span) for span in updating if span.stretch.program is not UNSCALE}
        return max(span.peak_bytes - (0 if id(span) in with_states else missing) for span in self.timeline.spans)

    @cached_property
    def hooks_bytes(self) -> int:
        """What saved-tensor hooks see in one forward, each storage once, parameters left out."""
        own = sum(run.count * sum(map(run.sizes.__getitem__, run.part.saved_classes)) for run in self.runs)
        return own + sum(map(self.runs[0].sizes.__getitem__, self.step.saved_by_several))

    @property
    def offloaded_bytes(self) -> int:
        """What one micro-batch keeps in host memory; it crosses the link there and back."""
        return sum(
            run.count * sum(map(run.sizes.__getitem__, run.part.offloaded_classes))
            for run in self.runs
            if run.part.offloaded_classes
        )

    @property
    def saved_per_layer_bytes(self) -> dict[int, int]:
        """What each part of a run adds to what forward leaves for backward, by how many layers there are up to the
        run's end."""
        ends = accumulate(run.count * run.part.section.num_layers for run in self.runs[1:-1])
        spans = zip(ends, self._layer_spans(0), self._layer_spans(1), strict=True)
        return {end: made.net_bytes + dropped.net_bytes for end, made, dropped in spans}

    def _layer_spans(self, which: int) -> list:
        """The spans of the layers in the first micro-batch: of forward (0), or of forward's end (1)."""
        num_runs = len(self.runs)
        return list(self.timeline.spans[which * num_runs + 1 : (which + 1) * num_runs - 1])

    def _stretches(self) -> Iterator[Stretch]:
        for later in range(2 if self.workload.gradient_accumulation_steps > 1 else 1):
            yield from self._micro_batch(later=bool(later))
        yield from self._optimizer()

    def _micro_batch(self, *, later: bool) -> Iterator[Stretch]:
        runs = self.runs
        for run in runs:
            yield _stretch(Phase.FORWARD, run, run.part.forward)
        for run in runs:
            yield _stretch(Phase.FORWARD, run, run.part.forward_end)
        yield Stretch(phase=Phase.BACKWARD, label="loss", program=self.step.between, sizes=runs[-1].sizes)
        for run in reversed(runs):
            yield _stretch(Phase.BACKWARD, run, run.part.backward_later if later else run.part.backward)
        yield Stretch(phase=Phase.BACKWARD, label="end", program=self.step.finish, sizes=runs[-1].sizes)

    def _optimizer(self) -> Iterator[Stretch]:
        """step(), through the scaler where there is one, and zero_grad(set_to_none=True)."""
        scaled = uses_grad_scaler(self.plan)
        if scaled:
            yield _stretch(Phase.OPTIMIZER, self.runs[0], UNSCALE)
        for run in self.runs:
            yield _stretch(Phase.OPTIMIZER, run, run.part.update.begin)
        for run in self.runs:
            yield _stretch(Phase.OPTIMIZER, run, run.part.update.end)
        yield from self._loop()
        if scaled:
            yield _stretch(Phase.OPTIMIZER, self.runs[0], SCALER_UPDATE)
        for run in self.runs:
            yield _stretch(Phase.OPTIMIZER, run, run.part.update.zero_grad)

    def _loop(self) -> Iterator[Stretch]:
        """The for-loop implementation, parameter by parameter."""
        if self.step.loop is None:
            return
        for run, (first, rest) in zip(self.runs, self.step.loop.parts, strict=True):
            yield _stretch(Phase.OPTIMIZER, replace(run, count=1), first)
            if run.count > 1:
                yield _stretch(Phase.OPTIMIZER, replace(run, count=run.count - 1), rest)
        yield _stretch(Phase.OPTIMIZER, self.runs[-1], self.step.loop.end)


def _stretch(phase: Phase, run: Run, program: Program) -> Stretch:
    first = run.first_layer
    if first is not None and phase is Phase.BACKWARD:
        first += (run.count - 1) * run.part.section.num_layers
    return Stretch(
        phase=phase,
        label=run.part.section.name,
        program=program,
        sizes=run.sizes,
        count=run.count,
        first_layer=first,
        num_layers=run.part.section.num_layers,
    )
