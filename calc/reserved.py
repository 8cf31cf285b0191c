"""What a plan's first two steps make the caching allocator reserve: the ledger's events, in their order, through it.

The order is that of a plain training script. The model is moved to the GPU tensor by tensor, in the order of
`model.parameters()`, then its buffers; then come the inputs. The first step makes cuBLAS's workspaces, one in the
thread of forward and one in autograd's, when each multiplies first, and the optimizer's states at the start of
`step()`, parameter by parameter. A second step follows, the steady one.

Of one tensor's several storages that are alive (a layer's and the next one's, two gradients that meet), the latest is
freed first: backward goes down the layers, and a gradient that meets a waiting one is added to it and dropped. They
are equally large, so a wrong one moves an address, and no byte of the sums.

Left out: what a script does on the GPU before its model is there or between steps (weights initialised on the GPU, a
tied head that is made and dropped, data sets, metrics, checkpoints), CUDA graphs, the profiler, steps of other sizes,
and what a third step might still reserve.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

from .allocator import Allocator, Block
from .gradients import gradient_of
from .ledger import Kind, Tensor
from .lifetimes import NEXT
from .memory import PERSISTENT_KINDS, StepMemory
from .optimizer_step import Pass
from .optimizers import gradients_persist
from .parts import Part
from .sizes import Sizes
from .timeline import Phase, Program, Stretch

MADE_BY_STEP = (Kind.GRADIENTS, Kind.OPTIMIZER_STATES)
"""What persists and is made in the first step; a recipe's are there before."""

Operation = tuple[list[Block], int]
"""The blocks of a tensor, the latest last, and the bytes of one more; or FREE, where the latest is given back."""

FREE = 0


class Reserved(NamedTuple):
    """torch.cuda's counters, the libraries' workspaces included."""

    peak_reserved_bytes: int
    """max_memory_reserved(): segments are kept, so it is what the process holds after two steps."""
    peak_allocated_bytes: int
    """max_memory_allocated() of the second step: blocks with their unsplit tails."""
    first_step_peak_allocated_bytes: int
    peak_requested_bytes: int
    """requested_bytes.all.peak of the second step: storages before they are rounded up."""


def reserved(
    step: StepMemory,
    *,
    forward_workspace_bytes: int = 0,
    backward_workspace_bytes: int = 0,
    allocator: Allocator | None = None,
) -> Reserved:
    """Two steps of `step` through `allocator`, as it is; without one, through a new one."""
    workspaces = {Phase.FORWARD: forward_workspace_bytes, Phase.BACKWARD: backward_workspace_bytes}
    process = _Process(step, allocator or Allocator(), {phase: size for phase, size in workspaces.items() if size})
    return process.run()


@dataclass(slots=True)
class _Process:
    """A training process: its allocator, and the blocks that its events will give back."""

    step: StepMemory
    allocator: Allocator
    workspaces: dict[Phase, int]
    """Bytes of those that are still to be made."""
    blocks: dict[Tensor, list[Block]] = field(default_factory=lambda: defaultdict(list))
    prepared: dict[tuple[Program, int], list[Operation]] = field(default_factory=dict)
    """By the program and its sizes: all equal layers share one."""

    def run(self) -> Reserved:
        step, plan = self.step, self.step.plan
        self._create()
        self._training_step(step.step.optimizer.first, gradients_exist=plan.recipe is not None)
        first_step_peak = self.allocator.peak_allocated_bytes
        self.allocator.reset_peaks()
        self._training_step(step.step.optimizer.steady, gradients_exist=gradients_persist(plan))
        return Reserved(
            peak_reserved_bytes=self.allocator.reserved_bytes,
            peak_allocated_bytes=self.allocator.peak_allocated_bytes,
            first_step_peak_allocated_bytes=first_step_peak,
            peak_requested_bytes=self.allocator.peak_requested_bytes,
        )

    def _create(self) -> None:
        """What is there before the first step."""
        made_by_step = MADE_BY_STEP if self.step.plan.recipe is None else ()
        for kind in PERSISTENT_KINDS:
            if kind not in made_by_step:
                for nbytes in _persistent(self.step, kind):
                    self.allocator.malloc(nbytes)

    def _training_step(self, passes: tuple[Pass, ...], *, gradients_exist: bool) -> None:
        outline = self.step.outline
        self._run(outline.micro_batch(later=gradients_exist))
        self._repeat(list(outline.micro_batch(later=True)), self.step.workload.gradient_accumulation_steps - 1)
        self._run(outline.optimizer_phase(passes))

    def _repeat(self, micro_batch: list[Stretch], times: int) -> None:
        """A micro-batch that leaves everything as it was would do so again and again."""
        before = self._layout()
        for _ in range(times):
            self._run(micro_batch)
            after = self._layout()
            if after == before:
                return
            before = after

    def _layout(self) -> object:
        """All that further events depend on: the free blocks, and those that will be given back."""
        held = [[(block.address, block.size_bytes) for block in blocks] for blocks in self.blocks.values() if blocks]
        return self.allocator.free_blocks(), held

    def _run(self, stretches: Iterable[Stretch]) -> None:
        for stretch in stretches:
            operations = self._operations(stretch.program, stretch.group)
            count = stretch.times
            if stretch.phase in self.workspaces and (first := _first_product(stretch.program, self.step.step.parts)):
                self._apply(operations[:first])
                self.allocator.malloc(self.workspaces.pop(stretch.phase))
                self._apply(operations[first:])
                count -= 1
            for _ in range(count):
                self._apply(operations)

    def _apply(self, operations: list[Operation]) -> None:
        malloc, free = self.allocator.malloc, self.allocator.free
        for blocks, nbytes in operations:
            if nbytes == FREE:
                free(blocks.pop())
            else:
                blocks.append(malloc(nbytes))

    def _operations(self, program: Program, group: int) -> list[Operation]:
        """The events of `program`; what lives outside the allocator (paged states) has no bytes here."""
        key, sizes = (program, group), self.step.sizes[group]
        if key not in self.prepared:
            self.prepared[key] = [
                (self.blocks[tensor], nbytes if sign > 0 else FREE)
                for tensor, sign in zip(program.tensors, program.steps, strict=True)
                if (nbytes := _nbytes(tensor, sizes))
            ]
        return self.prepared[key]


def _persistent(step: StepMemory, kind: Kind) -> Iterator[int]:
    """Bytes of each storage of one kind that lives between steps, layer after layer."""
    for run in step.runs:
        yield from [_nbytes(tensor, run.sizes) for tensor in run.part.persistent if tensor.kind is kind] * run.count
    for tensor in (*step.buffers, *step.inputs):
        if tensor.kind is kind:
            yield _nbytes(tensor, step.sizes[0])


def _nbytes(tensor: Tensor, sizes: Sizes) -> int:
    return ceil(sizes[tensor.shape] * tensor.dtype.itemsize)


def _first_product(program: Program, parts: Iterable[Part]) -> int | None:
    """How many events of `program` come before its first matrix product runs; None where it has none.

    The last of them allocates the product's result; then cuBLAS is called, and makes its workspace. A result that is
    written into another storage is passed over.
    """
    for part in parts:
        if program in (part.forward, part.backward, part.backward_later):
            results = _results_of_forward(part) if program is part.forward else _results_of_backward(part)
            events = enumerate(zip(program.tensors, program.steps, strict=True), 1)
            places = {tensor.name: number for number, (tensor, sign) in reversed(list(events)) if sign > 0}
            return next((places[result] for result in results if result in places), None)
    return None


def _results_of_forward(part: Part) -> Iterator[str]:
    """Names of what matrix products write."""
    return (row.writes[0].name.removeprefix(NEXT) for row in part.section.rows if row.products)


def _results_of_backward(part: Part) -> Iterator[str]:
    last, _ = part.pieces[-1]
    for row in reversed(last.section.rows):
        for gradient in row.gradients:
            if gradient.products and not gradient.in_forward and gradient.of in last.life.required:
                yield (gradient.unreduced or gradient_of(gradient.of)).name
