"""Memory of one training step: what persists, and the timeline of the first, the later and the steady micro-batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from .dtype import DType
from .ledger import Kind, Sizes, Tensor
from .lifetimes import gradient_of
from .optimizers import for_loop_temporaries, foreach_temporaries, persistent_gradient, states, updated
from .plan import Plan, Workload
from .scenario import Optimizer, Precision
from .step import Part, Step
from .timeline import Phase, Program, Stretch, Timeline, storage_bytes, timeline

GRAD_SCALER = tuple(Tensor(f"GradScaler.{name}", (), DType.FP32, Kind.BUFFERS) for name in ("_scale", "_growth_tracker"))
"""torch/amp/grad_scaler.py: two scalars on the device."""


_FOUND_INF = Tensor("GradScaler.found_inf", (), DType.FP32, Kind.TEMPORARIES)
_INVERSE_SCALE = tuple(replace(_FOUND_INF, name=f"GradScaler.inv_scale.{part}") for part in ("double", "reciprocal", "float"))
UNSCALE = Program([(tensor, True) for tensor in (*_INVERSE_SCALE, _FOUND_INF)] + [(tensor, False) for tensor in _INVERSE_SCALE])
"""GradScaler.unscale_: the inverse of the scale by way of fp64, and a flag that lives until update()."""
UPDATE = Program([(_FOUND_INF, False)])


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
    def owned(self) -> list[tuple[Run, list[tuple[Tensor, object]]]]:
        """The parameters of each run; one that is tied is the first run's alone."""
        seen: set[Tensor] = set()
        owned = []
        for run in self.runs:
            new = [(tensor, component) for tensor, component in run.part.parameters if tensor not in seen]
            if run.count == 1 and run.part.section.input is None:
                seen.update(tensor for tensor, _ in new)
            owned.append((run, new))
        return owned

    def persistent(self) -> Iterator[tuple[Tensor, int, Sizes]]:
        """Everything alive between steps: (tensor, how many, sizes)."""
        for run, parameters in self.owned:
            for parameter, _ in parameters:
                yield parameter, run.count, run.sizes
                if parameter.trainable:
                    for state in states(parameter, self.plan):
                        yield state, run.count, run.sizes
                    gradient = persistent_gradient(parameter, self.plan)
                    if gradient is not None:
                        yield gradient, run.count, run.sizes
        for tensor in (*self.buffers, *self.inputs):
            yield tensor, 1, self.runs[0].sizes

    @cached_property
    def persistent_bytes(self) -> dict[Kind, int]:
        """Bytes alive between steps, by kind."""
        totals: dict[Kind, int] = dict.fromkeys((Kind.PARAMETERS, Kind.GRADIENTS, Kind.OPTIMIZER_STATES, Kind.BUFFERS, Kind.INPUTS), 0)
        for tensor, count, sizes in self.persistent():
            totals[tensor.kind] += count * storage_bytes(tensor, sizes)
        return totals

    @cached_property
    def timeline(self) -> Timeline:
        """The steady step."""
        return timeline(sum(self.persistent_bytes.values()), list(self._stretches()))

    @cached_property
    def at_peak_bytes(self) -> dict[str, int]:
        """The parts of the peak, by kind; they add up to it."""
        parts = {kind.value: self.persistent_bytes.get(kind, 0) for kind in Kind}
        for (tensor, size), count in self.timeline.alive_at_peak().items():
            parts[tensor.kind] += count * size
        return parts

    @cached_property
    def forward_end_bytes(self) -> int:
        """Allocated at the end of the first micro-batch's forward."""
        spans = self.timeline.spans
        last = next(index for index, span in enumerate(spans) if span.stretch.phase is Phase.BACKWARD) - 1
        return spans[last].end_bytes

    @cached_property
    def first_step_peak_bytes(self) -> int:
        """The peak of the first step: there are no optimizer states before `step()` itself makes them."""
        missing = self.persistent_bytes[Kind.OPTIMIZER_STATES] if self.plan.recipe is None else 0
        return max(
            span.peak_bytes - (0 if span.stretch.phase is Phase.OPTIMIZER and span.stretch.program is not UNSCALE else missing)
            for span in self.timeline.spans
        )

    @cached_property
    def hooks_bytes(self) -> int:
        """What saved-tensor hooks see in one forward, each storage once, parameters left out."""
        own = sum(run.count * _bytes(run.part.life.saved, run.sizes) for run in self.runs)
        shared = frozenset().union(*(run.part.life.saved_from_outside - run.part.life.saved for run in self.runs))
        made = frozenset().union(*(run.part.life.saved for run in self.runs if run.part.section.input is None))
        return own + _bytes(shared - made, self.runs[0].sizes)

    def _stretches(self) -> Iterator[Stretch]:
        for later in range(2 if self.workload.gradient_accumulation_steps > 1 else 1):
            yield from self._micro_batch(bool(later))
        yield from self._optimizer()

    def _micro_batch(self, later: bool) -> Iterator[Stretch]:
        runs = self.runs
        for run in runs:
            yield self._stretch(Phase.FORWARD, run, run.part.forward)
        for run in runs:
            yield self._stretch(Phase.FORWARD, run, run.part.forward_end)
        yield Stretch(phase=Phase.BACKWARD, label="loss", program=self.step.between, sizes=runs[-1].sizes)
        for run in reversed(runs):
            yield self._stretch(Phase.BACKWARD, run, run.part.backward_later if later else run.part.backward)
        yield Stretch(phase=Phase.BACKWARD, label="end", program=self.step.finish, sizes=runs[-1].sizes)

    def _stretch(self, phase: Phase, run: Run, program: Program) -> Stretch:
        first = run.first_layer
        if first is not None and phase is Phase.BACKWARD:
            first += run.count - 1
        return Stretch(
            phase=phase, label=run.part.section.name, program=program, sizes=run.sizes, count=run.count, first_layer=first
        )

    def _optimizer(self) -> Iterator[Stretch]:
        """step() and zero_grad(set_to_none=True)."""
        if uses_grad_scaler(self.plan):
            yield self._stretch(Phase.OPTIMIZER, self.runs[0], UNSCALE)
        yield from self._optimizer_temporaries()
        if uses_grad_scaler(self.plan):
            yield self._stretch(Phase.OPTIMIZER, self.runs[0], UPDATE)
        if self.plan.recipe is None:
            for run, parameters in self.owned:
                trained = tuple(parameter for parameter, _ in parameters if parameter.trainable)
                yield self._stretch(Phase.OPTIMIZER, run, _freed_gradients(trained))

    def _optimizer_temporaries(self) -> Iterator[Stretch]:
        updates = [
            (run, tuple(updated(parameter, self.plan) for parameter, _ in parameters if parameter.trainable))
            for run, parameters in self.owned
        ]
        if self.plan.optimizer is Optimizer.ADAMW:
            for side in (0, 1):
                for run, tensors in updates:
                    yield self._stretch(Phase.OPTIMIZER, run, _foreach_programs(tensors)[side])
        if self.plan.optimizer is Optimizer.ADAMW_FOR_LOOP:
            yield from self._one_by_one(updates)

    def _one_by_one(self, updates: Sequence[tuple[Run, tuple[Tensor, ...]]]) -> Iterator[Stretch]:
        previous: Tensor | None = None
        for run, tensors in updates:
            if not tensors:
                continue
            first = replace(run, count=1)
            yield self._stretch(Phase.OPTIMIZER, first, _for_loop_program(tensors, previous))
            previous = tensors[-1]
            if run.count > 1:
                rest = replace(run, count=run.count - 1)
                yield self._stretch(Phase.OPTIMIZER, rest, _for_loop_program(tensors, previous))
        if previous is not None:
            yield self._stretch(Phase.OPTIMIZER, self.runs[-1], _for_loop_end(previous))


def _bytes(tensors: Iterable[Tensor], sizes: Sizes) -> int:
    return sum(storage_bytes(tensor, sizes) for tensor in tensors)


@lru_cache(maxsize=1024)
def _freed_gradients(parameters: tuple[Tensor, ...]) -> Program:
    return Program([(gradient_of(parameter), False) for parameter in parameters])


@lru_cache(maxsize=1024)
def _foreach_programs(parameters: tuple[Tensor, ...]) -> tuple[Program, Program]:
    allocated, freed = foreach_temporaries(list(parameters))
    return Program(allocated), Program(freed)


@lru_cache(maxsize=1024)
def _for_loop_program(parameters: tuple[Tensor, ...], previous: Tensor | None) -> Program:
    return Program(list(for_loop_temporaries(list(parameters), previous)))


@lru_cache(maxsize=1024)
def _for_loop_end(previous: Tensor) -> Program:
    events = list(for_loop_temporaries([previous], None))
    return Program([(events[1][0], False)])


def uses_grad_scaler(plan: Plan) -> bool:
    """fp16 under autocast scales its loss."""
    return plan.precision is Precision.FP16_AUTOCAST
