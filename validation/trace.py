"""A training step of the real model on fake tensors: parameters, FLOPs and the bytes alive, without a GPU.

Everything is counted as CUDA would allocate it; `cuda_kernels` and `autocast` correct where fake CPU tensors differ.
Left out: temporaries inside kernels that depend on data or on the GPU (the sort of embedding's backward, split
reductions, flash attention's split key/value accumulators for short sequences, cuBLAS workspaces).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _foreach_utils
from torch.utils._foreach_utils import _foreach_supported_types
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import initialization, masking_utils, modeling_utils

from calc.scenario import Attention, Optimizer, Parallel, Scenario, Task, scenario_from_strings
from validation import sdpa
from validation.cuda_kernels import (
    CudaFunctions,
    checkpoint_contexts,
    cuda_call,
    hidden_workspace_bytes,
    round_up,
)
from validation.cuda_losses import CHUNKED_LOSS, chunked_loss, losses_on_cuda
from validation.models import CannotRun, Job, build_job, parameter_counts, supported
from validation.quick_fakes import QuickFakeTensorMode
from validation.step import Phase, evaluation, forward, generation, training_step

ALLOCATION_UNIT_BYTES = 512
FIRST_STEP, STEADY_STEP = 1, 2
BETWEEN = 0
"""The training step between two evaluations."""
FREE = "free"
KERNELS = {Attention.AUTO: "sdpa", **dict.fromkeys(sdpa.KERNELS, "sdpa"), Attention.EAGER: "eager"}
"""transformers' attention function."""


def addmm_flops(_: Any, a: torch.Tensor, b: torch.Tensor, *rest: Any, **options: Any) -> int:
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


def grouped_mm_flops(a: torch.Tensor, b: torch.Tensor, *rest: Any, **options: Any) -> int:
    """Every token meets one matrix: 2·tokens·k·n, forward and backward."""
    return 2 * a.shape[0] * a.shape[1] * b.shape[-1]


FLOPS = flop_registry | {
    torch.ops.aten.addmm: addmm_flops,
    torch.ops.aten.addmm_: addmm_flops,
    torch.ops.aten._grouped_mm: grouped_mm_flops,
    torch.ops.aten._int_mm: flop_registry[torch.ops.aten.mm],
}
"""torch's counter knows addmm neither in place nor with an out_dtype, and _grouped_mm and _int_mm not at all."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change of the bytes alive: an allocation by `op`, or (op "free") its end; `live_bytes` is the sum after."""

    step: int
    phase: Phase
    op: str
    storage: int
    bytes: int
    live_bytes: int
    shape: tuple[int, ...] = ()
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class PhaseBytes:
    """What one phase of one step holds at most, and at its end."""

    name: Phase
    peak_allocated_bytes: int
    end_allocated_bytes: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What one training step was seen to take, under the Estimate's names. Bytes and FLOPs are exact integers."""

    parameters: dict[str, int]
    memory: dict[str, Any]
    flops: dict[str, int]
    events: tuple[Event, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Without the events: what a record keeps."""
        return {"parameters": self.parameters, "memory": self.memory, "flops": self.flops}


class StepRecorder(TorchDispatchMode):
    """Follows every storage from its allocation to its end and counts matmul FLOPs, step by step, phase by phase."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.phase = FIRST_STEP, Phase.FORWARD
        self.live_bytes = self.peak_bytes = 0
        self.alive: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self.events: list[Event] = []
        self.ended: dict[int, list[PhaseBytes]] = defaultdict(list)
        self.flops: dict[tuple[int, str], int] = defaultdict(int)
        self.live_bytes_before_step: dict[int, int] = {}
        self.on_host: set[int] = set()
        self.storages = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return args[0].fake_device  # no tensor, and the most frequent call
        if func is CHUNKED_LOSS:
            with self:
                return chunked_loss(*args)
        # Grad mode is off inside the engine; within backward only a checkpoint's recomputed forward turns it on.
        in_engine = self.phase is Phase.BACKWARD and not torch.is_grad_enabled()
        out = cuda_call(func, args, kwargs, in_engine)
        if getattr(func, "namespace", None) == "bitsandbytes":
            self.hold(args, "moved to the device")  # its tables of 8-bit codes, made on the host
        self.hold(out, str(func), on_device=not self._is_on_host(func, args))
        for sizes in hidden_workspace_bytes(func, args):
            self._hold_inside(func, sizes)
        packet = getattr(func, "overloadpacket", None)
        if packet in FLOPS:
            work = "recompute" if self.phase is Phase.BACKWARD and not in_engine else str(self.phase)
            self.flops[self.step, work] += FLOPS[packet](*args, **kwargs, out_val=out)
        return out

    def hold(self, tensors: Any, op: str, on_device: bool = True) -> None:
        """Counts the storages of `tensors` from now to their end; those on the host count nothing."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, FakeTensor) and (key := tensor.untyped_storage()._cdata) not in self.alive:
                size = round_up(tensor.untyped_storage().nbytes(), ALLOCATION_UNIT_BYTES) * on_device
                self.storages += 1
                if not on_device:
                    self.on_host.add(key)
                ended = partial(self._release, key, self.storages, size)
                self.alive[key] = size, weakref.ref(tensor.untyped_storage(), ended)
                self._change(op, self.storages, size, tuple(tensor.shape), str(tensor.dtype))

    def _is_on_host(self, func: Any, args: Any) -> bool:
        """torch.tensor(number) makes a host tensor (an optimizer's step counter); what it alone is used for stays
        there."""
        if func is torch.ops.aten.lift_fresh.default:
            return True
        inputs = [x for x in tree_leaves(args) if isinstance(x, FakeTensor)]
        return bool(inputs) and all(x.untyped_storage()._cdata in self.on_host for x in inputs)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        self.phase, self.peak_bytes = phase, self.live_bytes
        yield
        self.ended[self.step].append(PhaseBytes(phase, self.peak_bytes, self.live_bytes))

    def _hold_inside(self, op: Any, sizes: list[int]) -> None:
        sizes = [round_up(size, ALLOCATION_UNIT_BYTES) for size in sizes]
        for size in sizes:
            self.storages += 1
            self._change(str(op), self.storages, size)
        for number, size in zip(range(self.storages, 0, -1), reversed(sizes), strict=False):
            self._change(FREE, number, -size)

    def _release(self, key: int, storage: int, size: int, _: Any) -> None:
        del self.alive[key]
        self.on_host.discard(key)
        self._change(FREE, storage, -size)

    def _change(self, op: str, storage: int, size: int, shape: tuple[int, ...] = (), dtype: str = "") -> None:
        if not size:
            return
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.events.append(Event(self.step, self.phase, op, storage, size, self.live_bytes, shape, dtype))


class CudaCalls(TorchDispatchMode):
    """Calls as CUDA would run them, not recorded."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cuda_call(func, args, kwargs or {}, in_engine=False)


def trace(scenario: Scenario, config: dict[str, Any]) -> Trace:
    """The first and the second, steady step of `scenario` on the model that `config` (a config.json) describes."""
    if scenario.parallel != Parallel():
        raise CannotRun("parallel", str(scenario.parallel), ["one GPU"])
    if scenario.optimizer is Optimizer.PAGED_ADAMW_8BIT:
        raise CannotRun("optimizer", scenario.optimizer, ["all others: its states page only where there is a GPU"])
    kernel = supported("attention", scenario.attention, KERNELS)
    contexts = partial(checkpoint_contexts, scenario.attention)
    with QuickFakeTensorMode(allow_non_fake_inputs=True), as_on_cuda(scenario.attention), only_reference_counting():
        with CudaCalls():
            job = build_job(scenario, config, "cpu", kernel, contexts)
        keep_on_host(getattr(job.model, "prompt_tokens", {}))
        recorder = StepRecorder()
        recorder.hold(
            [*job.model.parameters(), *job.model.buffers(), *averaged(job), job.input_ids, job.labels], "persistent"
        )
        if job.weight_ema is not None:
            recorder.hold(job.weight_ema.n_averaged, "persistent", on_device=False)
        cached, loaded = 0, storage_bytes(job.model.parameters())
        with recorder:
            for recorder.step in (FIRST_STEP, STEADY_STEP):
                recorder.live_bytes_before_step[recorder.step] = recorder.live_bytes
                if scenario.task is Task.INFERENCE:
                    cached = storage_bytes(generation(job, recorder.during))
                    continue
                if scenario.task is Task.TRAINING:
                    training_step(job, recorder.during)
                    continue
                evaluation(job, recorder.during)
                if recorder.step == FIRST_STEP:
                    recorder.step = BETWEEN
                    training_step(job, recorder.during)
        own = of_task(scenario.task, job, recorder, cached)
    done = flops(recorder, job.num_batches if scenario.task is Task.EVALUATION else 1)
    return Trace(parameter_counts(job.model), memory(job, recorder, loaded) | own, done, tuple(recorder.events))


@dataclass(frozen=True, slots=True)
class HostIds:
    """Token ids in host memory, of which only the copy on the device counts."""

    shape: tuple[int, ...]

    def unsqueeze(self, dim: int) -> HostIds:
        return HostIds((1, *self.shape))

    def expand(self, num_sequences: int, _: int) -> HostIds:
        return HostIds((num_sequences, *self.shape[1:]))

    def to(self, device: torch.device) -> torch.Tensor:
        return torch.zeros(self.shape, dtype=torch.int64, device=device)


def keep_on_host(ids: dict[str, Any]) -> None:
    """PEFT keeps the ids of virtual tokens on the host."""
    ids |= {adapter: HostIds(tuple(each.shape)) for adapter, each in ids.items()}


@contextmanager
def as_on_cuda(attention: Attention) -> Iterator[None]:
    """CUDA's branch of composite functions, and code as it runs outside of tracing."""
    find = masking_utils.find_packed_sequence_indices

    def find_none(position_ids: torch.Tensor) -> None:
        find(position_ids)  # outside of tracing it then looks at the values and sees that no sequences are packed

    def without_values(parameter: torch.Tensor, **_: Any) -> torch.Tensor:
        return parameter  # torch's draws again until all values lie within the bounds

    def set_data(parameter: torch.Tensor, converted: torch.Tensor) -> None:
        parameter.data = converted.data  # Module.to() would swap fake parameters, which weak references forbid

    def on_host(**_: Any) -> saved_tensors_hooks:
        return saved_tensors_hooks(
            lambda tensor: (tensor.shape, tensor.dtype), lambda kept: torch.empty(kept[0], dtype=kept[1])
        )

    def step(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, _: Any) -> None:
        optimizer.step()  # the scaler first looks at the number of infinities

    def same(mode: FakeTensorMode, _: Any) -> FakeTensorMode:
        return mode  # AveragedModel copies the model, but there is one mode

    def copied(tensor: FakeTensor, memo: dict[int, Any]) -> torch.Tensor:
        copy = tensor.detach().clone()  # views of a fake tensor's deep copy would have a storage of their own
        if isinstance(tensor, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, tensor.requires_grad)
        return memo.setdefault(id(tensor), copy)

    with (
        patch.object(FakeTensorMode, "__deepcopy__", same, create=True),
        patch.object(FakeTensor, "__deepcopy__", copied),
        patch.object(masking_utils, "find_packed_sequence_indices", find_none),
        patch.dict(initialization.TORCH_INIT_FUNCTIONS, trunc_normal_=without_values),
        patch.object(torch.utils, "swap_tensors", set_data),
        patch.object(_foreach_utils, "_foreach_supported_types", [*_foreach_supported_types, FakeTensor]),
        patch.object(modeling_utils, "save_on_cpu", on_host),
        patch.object(torch.amp.GradScaler, "_maybe_opt_step", step),
        CudaFunctions(attention),
        losses_on_cuda(),
    ):
        yield


@contextmanager
def only_reference_counting() -> Iterator[None]:
    """A garbage collection at an arbitrary moment would change the bytes alive from run to run."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors' storages, each once, rounded up to the allocator's unit."""
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(round_up(size, ALLOCATION_UNIT_BYTES) for size in sizes.values())


def of_task(task: Task, job: Job, recorder: StepRecorder, cached: int) -> dict[str, int]:
    """What forward leaves: for backward, or for the tokens to come."""
    if task is Task.INFERENCE:
        return {"kv_cache_bytes": cached}
    [forward_end, *_] = recorder.ended[STEADY_STEP]
    return {
        "saved_activation_bytes": forward_end.end_allocated_bytes - recorder.live_bytes_before_step[STEADY_STEP],
        "autograd_saved_bytes": autograd_saved_bytes(job) if task is Task.TRAINING else 0,
    }


def memory(job: Job, recorder: StepRecorder, loaded: int) -> dict[str, Any]:
    """`loaded`: bytes of the parameters before the first step, in which int8 linears give their biases another type."""
    steady = recorder.ended[STEADY_STEP]
    phases = [phase_bytes(phase, steady) for phase in dict.fromkeys(each.name for each in steady)]
    highest = max(phases, key=lambda phase: phase.peak_allocated_bytes)
    before = recorder.live_bytes_before_step
    parameters = storage_bytes(job.model.parameters())
    # Made by the first step, as the optimizer's states are.
    scaler = storage_bytes(scaler_tensors(job))
    gradients = storage_bytes(p.grad for p in job.model.parameters() if p.grad is not None)
    return {
        "persistent_bytes": {
            "parameters": parameters,
            "optimizer_states": before[STEADY_STEP] - before[FIRST_STEP] - scaler - gradients - (parameters - loaded),
            "buffers": storage_bytes(job.model.buffers()) + scaler,
            "weight_ema": storage_bytes(averaged(job)),
            "gradients": gradients,
            "inputs": storage_bytes([job.input_ids, job.labels]),
        },
        "phases": [asdict(phase) for phase in phases],
        "first_step_peak_allocated_bytes": max(phase.peak_allocated_bytes for phase in recorder.ended[FIRST_STEP]),
        "peak_allocated_bytes": highest.peak_allocated_bytes,
        "peak_phase": highest.name,
    }


def averaged(job: Job) -> list[torch.Tensor]:
    """The copies of weights and buffers that a moving average keeps."""
    copy = job.weight_ema.module if job.weight_ema is not None else torch.nn.Module()
    return [*copy.parameters(), *copy.buffers()]


def scaler_tensors(job: Job) -> list[torch.Tensor]:
    """What a GradScaler keeps on the device."""
    state = vars(job.scaler) if job.scaler is not None else {}
    return [state[name] for name in ("_scale", "_growth_tracker") if name in state]


def phase_bytes(name: Phase, ended: list[PhaseBytes]) -> PhaseBytes:
    """A phase over all micro-batches: its highest peak, and its end in the last of them."""
    same = [phase for phase in ended if phase.name is name]
    return PhaseBytes(name, max(phase.peak_allocated_bytes for phase in same), same[-1].end_allocated_bytes)


def flops(recorder: StepRecorder, num_batches: int) -> dict[str, int]:
    """Of a training step, of one of `num_batches` of an evaluation, or of the two passes of a generation."""
    passes = {phase.value: recorder.flops[STEADY_STEP, phase] for phase in (Phase.PREFILL, Phase.DECODE)}
    if any(passes.values()):
        return {phase: done for phase, done in passes.items() if done}
    parts = {work: recorder.flops[STEADY_STEP, work] // num_batches for work in ("forward", "backward", "recompute")}
    return parts | {"total": sum(parts.values())}


def autograd_saved_bytes(job: Job) -> int:
    """Bytes of the storages that saved-tensor hooks see in one forward, parameters left out."""
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with CudaCalls(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = forward(job)
        del outputs
    owned = {p.untyped_storage()._cdata for p in job.model.parameters()}
    return storage_bytes(tensor for tensor in saved if tensor.untyped_storage()._cdata not in owned)


def lines(traced: Trace) -> Iterator[str]:
    """The steady step, one line per allocation and free: phase, bytes alive after it, change, operator, shape, type."""
    for event in traced.events:
        if event.step == STEADY_STEP:
            tensor = f"{list(event.shape)} {event.dtype.removeprefix('torch.')}" if event.dtype else ""
            change = f"{event.live_bytes:>16,} {event.bytes:>+15,}"
            yield f"{event.phase:9} {change}  #{event.storage:<6} {event.op}  {tensor}".rstrip()


def main(arguments: list[str]) -> None:
    """Prints one trace: `--model-json TEXT|FILE`, `--summary` without the operators, `--FIELD VALUE` of a Scenario."""
    parser = argparse.ArgumentParser(prog="python -m validation.trace", description=main.__doc__)
    parser.add_argument("--model-json", required=True)
    parser.add_argument("--summary", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    text = known.model_json if known.model_json.startswith("{") else Path(known.model_json).read_text()
    names = (name.removeprefix("--").replace("-", "_") for name in rest[::2])
    scenario = scenario_from_strings([("model", text), *zip(names, rest[1::2], strict=True)])
    traced = trace(scenario, json.loads(text))
    if not known.summary:
        print(*lines(traced), sep="\n")
    print(json.dumps(traced.to_dict(), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
