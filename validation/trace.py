"""A training step of the real model on fake tensors: parameters, FLOPs and the bytes alive, without a GPU.

Everything is counted as CUDA would allocate it; `cuda_kernels` and `autocast` correct where fake CPU tensors differ.
Left out: temporaries inside kernels that depend on data or on the GPU (split sums, cub's sorts, flash attention's split
key/value accumulators for short sequences, cuBLAS workspaces), listed in docs/cuda_kernels.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calc.scenario import Attention, Optimizer, Parallel, Scenario, Task, scenario_from_strings
from validation import sdpa
from validation.as_on_cuda import as_on_cuda, keep_on_host, only_reference_counting
from validation.cuda_kernels import checkpoint_contexts
from validation.emulated_4bit import Linear4bit
from validation.emulated_fp8 import Fp8Linear
from validation.expert_loads import spread
from validation.models import Job, build_job, parameter_counts
from validation.quick_fakes import QuickFakeTensorMode
from validation.recorder import FIRST_STEP, CudaCalls, Event, PhaseBytes, StepRecorder
from validation.refusals import CannotRun, supported
from validation.step import Phase, evaluation, forward, generation, training_step
from validation.storages import storage_bytes

STEADY_STEP = 2
BETWEEN = 0
"""The training step between two evaluations."""
KERNELS = {**dict.fromkeys((Attention.AUTO, *sdpa.KERNELS, Attention.MATH), "sdpa"), Attention.EAGER: "eager"}
"""transformers' attention function."""


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


def trace(scenario: Scenario, config: dict[str, Any]) -> Trace:
    """The first and the second, steady step of `scenario` on the model that `config` (a config.json) describes."""
    if scenario.parallel != Parallel():
        raise CannotRun("parallel", str(scenario.parallel), ["one GPU"])
    if scenario.optimizer is Optimizer.PAGED_ADAMW_8BIT:
        raise CannotRun("optimizer", scenario.optimizer, ["all others: its states page only where there is a GPU"])
    kernel = supported("attention", scenario.attention, KERNELS)
    contexts = partial(checkpoint_contexts, scenario.attention)
    with (
        QuickFakeTensorMode(allow_non_fake_inputs=True),
        as_on_cuda(scenario.attention),
        only_reference_counting(),
        spread(scenario, config),
    ):
        with CudaCalls():
            job = build_job(scenario, config, "cpu", kernel, contexts)
        keep_on_host(getattr(job.model, "prompt_tokens", {}))
        recorder = StepRecorder()
        recorder.hold(
            [*job.model.parameters(), *job.model.buffers(), *averaged(job), job.inputs, job.labels], "persistent"
        )
        for module in job.model.modules():
            if isinstance(module, Linear4bit | Fp8Linear):
                recorder.hold(module.unpacked, "persistent", on_device=False)
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
    names = dict.fromkeys(each.name for each in steady if each.name is not Phase.REQUANTISING)
    phases = [phase_bytes(phase, steady) for phase in names]
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
            "inputs": storage_bytes([job.inputs, job.labels]),
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
    parts = {name, Phase.REQUANTISING} if name is Phase.DECODE else {name}
    same = [phase for phase in ended if phase.name in parts]
    return PhaseBytes(name, max(phase.peak_allocated_bytes for phase in same), same[-1].end_allocated_bytes)


def flops(recorder: StepRecorder, num_batches: int) -> dict[str, int]:
    """Of a training step, of one of `num_batches` of an evaluation, or of the two passes of a generation."""
    passes = {phase.value: recorder.flops[STEADY_STEP, phase] for phase in (Phase.PREFILL, Phase.DECODE)}
    if any(passes.values()):
        return {phase: done for phase, done in passes.items() if done}
    parts = {work: recorder.flops[STEADY_STEP, work] // num_batches for work in ("forward", "backward", "recompute")}
    return parts | {"total": sum(parts.values())}


def autograd_saved_bytes(job: Job) -> int:
    """Bytes of the storages on the device that saved-tensor hooks see in one forward, parameters left out."""
    saved: list[torch.Tensor] = []
    recorder = StepRecorder()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in recorder.on_host:
            saved.append(tensor)
        return tensor

    with recorder, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
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
