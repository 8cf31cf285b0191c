"""One training step measured on a CUDA device: `python -m validation measure`.

Needs torch, transformers, peft and nvidia-ml-py, and nothing of calc. A worker process measures case after case, so
that the GPU's time goes into steps and not into imports; after an out-of-memory a new one goes on. Cases that the
records already hold for this GPU and these versions are left out, so a run that was stopped can be started again.
"""

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from validation import cuda, nvml
from validation.cases import SUITES, Case, as_object, config_of
from validation.models import Job, build_job, parameter_counts
from validation.records import FOLDER, Record, file_of, installed_versions, read
from validation.step import training_step

DONE, NO_CUDA, NEW_PROCESS = 0, 2, 75
SEED = 0
TIMED_STEPS = 5
LARGEST_LEFTOVER_BYTES = 2**20
"""A case that leaves more allocated than this would be counted in the next one."""
FOREVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The GPU as this process found it."""

    gpu_name: str
    versions: dict[str, str | None]
    used_before_context_bytes: int
    workspaces: dict[str, int]
    facts: dict[str, Any]

    @property
    def workspace_bytes(self) -> int:
        return sum(self.workspaces.values())


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.until is None:
        return supervise(arguments, time.time() + 60 * options.minutes)
    if not torch.cuda.is_available():
        print("measure needs a CUDA device, and torch sees none", file=sys.stderr)
        return NO_CUDA
    return work(SUITES[options.suite][: options.limit], options.records, options.until)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m validation measure", description=__doc__)
    options.add_argument("--suite", choices=SUITES, default="first", help="Which cases. Default: %(default)s.")
    options.add_argument("--limit", type=int, help="Only this many cases, from the suite's start.")
    options.add_argument("--minutes", type=float, default=FOREVER, help="Start no case after so many minutes.")
    options.add_argument("--records", type=Path, default=FOLDER, help="Folder to write to. Default: %(default)s.")
    options.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return options


def supervise(arguments: Sequence[str], until: float) -> int:
    """Runs workers, one after the other, until one says that it is done."""
    command = [sys.executable, "-m", "validation", "measure", *arguments, f"--until={until}"]
    while (status := subprocess.run(command, check=False).returncode) == NEW_PROCESS:
        pass
    return status


def work(cases: Sequence[Case], folder: Path, until: float) -> int:
    """Measures the cases that are not recorded yet; NEW_PROCESS when another process should go on."""
    machine = start()
    path = folder / file_of(machine.gpu_name)
    recorded = {record.id for record in read(path) if record.versions == machine.versions}
    remaining = [case for case in cases if case.id not in recorded]
    while remaining and time.time() < until:
        case = remaining.pop(0)
        record = measure(case, machine)
        record.append_to(path)
        print(outcome(record), flush=True)
        leftover = torch.cuda.memory_allocated() - machine.workspace_bytes
        if record.failed or leftover > LARGEST_LEFTOVER_BYTES:
            return NEW_PROCESS
    print(f"{len(remaining)} of {len(cases)} cases remain")
    return DONE


def start() -> Machine:
    """Makes the CUDA context and cuBLAS's workspaces, and sees what they take."""
    before = nvml.used_bytes()
    torch.zeros(1, device="cuda")
    after = nvml.used_bytes()
    reserved = torch.cuda.memory_reserved()
    properties = torch.cuda.get_device_properties(0)
    return Machine(
        gpu_name=properties.name,
        versions={**installed_versions(), "cuda": torch.version.cuda, "driver": nvml.driver_version()},
        used_before_context_bytes=before,
        workspaces=cuda.workspaces(),
        facts={
            "compute_capability": f"{properties.major}.{properties.minor}",
            "usable_memory_bytes": properties.total_memory,
            **nvml.total_bytes(),
            "used_before_context_bytes": before,
            "used_after_context_bytes": after,
            "context_bytes": after - before - reserved,
        },
    )


def measure(case: Case, machine: Machine) -> Record:
    """The record of one case; of one that runs out of memory the counters when it did, of one that cannot run why."""
    measured: dict[str, Any] = {"gpu": machine.facts | {"workspaces": machine.workspaces}, "seed": SEED}
    try:
        run(case, machine, measured)
    except torch.OutOfMemoryError:
        measured["out_of_memory"] = cuda.counters()
    except RuntimeError as error:
        measured["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    # The job holds itself in cycles; what it cached would count in the next case.
    gc.collect()
    torch.cuda.empty_cache()
    return Record(
        kind="measurement",
        id=case.id,
        scenario=case.scenario,
        holdout=case.holdout,
        gpu_name=machine.gpu_name,
        versions=machine.versions,
        measured=measured,
    )


def run(case: Case, machine: Machine, measured: dict[str, Any]) -> None:
    """Fills `measured`: the first step, the second, which is the steady one, then times, then a profile."""
    scenario = as_object(case.scenario)
    torch.manual_seed(SEED)
    with cuda.restricted_to(scenario.attention):
        with cuda.history(case.history, measured):
            kernel = "eager" if scenario.attention == "eager" else "sdpa"
            job = build_job(scenario, config_of(case.scenario), "cuda", kernel)
            prevent_skipped_steps(job)
            first, before = counted_step(job), torch.cuda.memory_allocated()
            steady, used = counted_step(job), nvml.used_bytes()
        measured["parameters"] = parameter_counts(job.model)
        measured["memory"] = memory(machine, first, before, steady, used)
        measured["time"] = times([timed_step(job) for _ in range(TIMED_STEPS)])
        measured["profile"] = cuda.profiled(lambda: training_step(job, lambda _: nullcontext()))
    if scenario.attention == "eager":  # all its products are matmuls, the only ones the profiler counts
        measured["flops"] = {"total": measured["profile"]["matmul_flops"]}


def prevent_skipped_steps(job: Job) -> None:
    """A GradScaler's first scale overflows and the optimizer's step is left out: start at 1. It changes no size."""
    if job.scaler is not None:
        job.scaler.load_state_dict(job.scaler.state_dict() | {"scale": 1.0})


def counted_step(job: Job) -> cuda.PhaseCounters:
    marks = cuda.PhaseCounters()
    training_step(job, marks.during)
    return marks


def timed_step(job: Job) -> dict[str, float]:
    marks = cuda.PhaseTimes()
    training_step(job, marks.during)
    return marks.seconds()


def memory(
    machine: Machine, first: cuda.PhaseCounters, before: int, steady: cuda.PhaseCounters, used: int
) -> dict[str, Any]:
    """The Estimate's names. torch's counters are as torch gives them: allocated with the libraries' workspaces.

    `before`: allocated between the steps; `used`: NVML's bytes after the steady step, which are those at its peak,
    since the allocator returns nothing.
    """
    own = used - machine.used_before_context_bytes
    return {
        "saved_activation_bytes": steady.first_forward_end_bytes - before,
        "phases": [{"name": str(phase)} | counters for phase, counters in steady.phases.items()],
        "first_step_phases": [{"name": str(phase)} | counters for phase, counters in first.phases.items()],
        "first_step_peak_allocated_bytes": first.highest("allocated"),
        **{f"peak_{counter}_bytes": steady.highest(counter) for counter in cuda.COUNTERS},
        "peak_phase": str(max(steady.phases, key=lambda phase: steady.phases[phase]["peak_allocated_bytes"])),
        "library_workspace_bytes": machine.workspace_bytes,
        "device_bytes": own,
        "context_bytes": own - torch.cuda.memory_reserved(),
        "allocation_retries": torch.cuda.memory_stats()["num_alloc_retries"],
    }


def times(steps: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The median of each phase and of the step."""
    medians = {f"{name}_seconds": median(step[name] for step in steps) for name in steps[0]}
    return {"steps": len(steps)} | medians


def outcome(record: Record) -> str:
    """One line for who watches."""
    if record.failed:
        return f"{record.failed}  {record.id}"
    step, peak = record.measured["time"]["step_seconds"], record.measured["memory"]["peak_allocated_bytes"]
    return f"{peak / 2**30:8.2f} GiB {step * 1000:9.1f} ms  {record.id}"
