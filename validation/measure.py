"""Training steps and generations measured on a CUDA device: the worker of `python -m validation measure`.

Needs torch, transformers, peft and nvidia-ml-py, and nothing of calc. A worker process measures case after case, so
that the GPU's time goes into steps and not into imports; after an out-of-memory a new one goes on. What the records
already hold for this GPU and these versions is left out, so a run that was stopped can be started again.
"""

import gc
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

from validation import cuda
from validation.attention_backends import restricted_to
from validation.cases import Case, as_object, config_of
from validation.machine import Machine, start
from validation.models import Job, build_job, parameter_counts
from validation.questions import QUESTIONS, Question
from validation.records import Record, file_of, read
from validation.refusals import supported
from validation.step import Phase, training_step, whole_generation
from validation.storages import storage_bytes
from validation.suites import MEASURED
from validation.supervisor import NEW_PROCESS, SUITE_NAMES, parser

Asked = Case | Question
During = Callable[[Phase], AbstractContextManager[None]]


def generate(job: Job, during: During) -> int:
    """One generation; gives the bytes of the cache it leaves."""
    return storage_bytes(whole_generation(job, during))


Step = Callable[[Job, During], int | None]
STEPS: dict[str, Step] = {"training": training_step, "inference": generate}
"""By the scenario's task."""

SUITES: dict[str, Sequence[Asked]] = dict(zip(SUITE_NAMES, (QUESTIONS, *MEASURED.values()), strict=True))

DONE, NO_CUDA = 0, 2
SEED = 0
TIMED_STEPS = 5
WEIGHTS_DEVIATION = 0.02
"""As transformers' initializer_range."""
LARGEST_LEFTOVER_BYTES = 2**20
"""What more a case leaves behind would count in the next one."""


def main(arguments: Sequence[str]) -> int:
    """A worker: measures case after case, until another process should go on, or until the time is up."""
    options = parser(main.__doc__).parse_args(arguments)
    if not torch.cuda.is_available():
        print("measure needs a CUDA device, and torch sees none", file=sys.stderr)
        return NO_CUDA
    names = [options.suite] if options.suite else list(SUITES)
    suites = {name: [asked for asked in SUITES[name] if options.only in asked.id][: options.limit] for name in names}
    return work(suites, options.records, options.until, again=options.again)


def work(suites: Mapping[str, Sequence[Asked]], folder: Path, until: float, *, again: bool = False) -> int:
    """Measures what is not recorded yet; NEW_PROCESS when another process should go on."""
    machine = start()
    gc.freeze()  # the imported libraries: the collection after every case should not walk them
    waiting = [(name, asked) for name, suite in suites.items() for asked in not_recorded(suite, folder, machine, again)]
    idle, measured = machine.idle(), 0
    while waiting and time.time() < until:
        _, asked = waiting.pop(0)
        began = time.time()
        record = measure(asked, machine, {"measured_before": measured, **idle})
        record.append_to(file_for(asked, folder, machine))
        print(outcome(record, time.time() - began), flush=True)
        if (idle := idle_after(record, machine)) is None:
            return NEW_PROCESS
        measured += 1
    for name, suite in suites.items():
        print(f"{name}: {sum(of == name for of, _ in waiting)} of {len(suite)} remain")
    return DONE


def not_recorded(suite: Sequence[Asked], folder: Path, machine: Machine, again: bool) -> list[Asked]:
    """What this GPU's records with these versions lack; with `again` also what they hold as an error."""
    recorded = {
        record.id
        for path in {file_for(asked, folder, machine) for asked in suite}
        for record in read(path)
        if record.versions == machine.versions and not (again and "error" in record.measured)
    }
    return [asked for asked in suite if asked.id not in recorded]


def file_for(asked: Asked, folder: Path, machine: Machine) -> Path:
    """Answers to questions lie apart: there is no Estimate to compare them with."""
    return (folder / "questions" if isinstance(asked, Question) else folder) / file_of(machine.gpu_name)


def idle_after(record: Record, machine: Machine) -> dict[str, int] | None:
    """What the process holds after a case; None where a new one should go on."""
    if "out_of_memory" in record.measured:
        return None
    try:
        idle = machine.idle()
    except torch.AcceleratorError:  # the case's error has spoilt the context
        return None
    return idle if idle["allocated_bytes"] <= LARGEST_LEFTOVER_BYTES else None


def measure(asked: Asked, machine: Machine, process: dict[str, int]) -> Record:
    """The record of one case or question; of one that runs out of memory the counters when it did, of one that cannot
    run why.

    `process`: how many this process measured before, and what it held when this one began.
    """
    measured: dict[str, Any] = {
        "gpu": machine.facts | {"workspaces": machine.workspaces},
        "process": process,
        "seed": SEED,
    }
    torch.manual_seed(SEED)
    try:
        if isinstance(asked, Question):
            measured["answer"] = asked.answer(machine)
        else:
            run(asked, machine, measured)
    except torch.OutOfMemoryError:
        measured["out_of_memory"] = cuda.counters()
    except Exception as error:  # whatever it is, the other cases should run
        measured["error"] = in_one_line(error)
    return Record(
        kind="measurement",
        id=asked.id,
        scenario=asked.scenario,
        holdout=asked.holdout,
        gpu_name=machine.gpu_name,
        versions=machine.versions,
        measured=measured,
    )


def in_one_line(error: Exception) -> str:
    """Type, first line and place of an error."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {message} ({Path(place.filename).name}:{place.lineno})"


def run(case: Case, machine: Machine, measured: dict[str, Any]) -> None:
    """Fills `measured`; what is allocated when the model has gone are the libraries' workspaces."""
    run_steps(case, machine, measured)
    gc.collect()
    measured["memory"]["library_workspace_bytes"] = torch.cuda.memory_allocated()


def run_steps(case: Case, machine: Machine, measured: dict[str, Any]) -> None:
    """The first step or generation, the second, which is the steady one, then times, then a profile."""
    scenario = as_object(case.scenario)
    step = supported("task", scenario.task, STEPS)
    with restricted_to(scenario.attention):
        kernel = "eager" if scenario.attention == "eager" else "sdpa"
        job = build_job(scenario, config_of(case.scenario), "cuda", kernel)
        prevent_skipped_steps(job)
        lay_out = taken_apart(job)
        with cuda.history(case.history, measured):
            lay_out()
            (first, _), before = counted(step, job), torch.cuda.memory_allocated()
            (steady, cached), own = counted(step, job), machine.own_bytes()
        measured["parameters"] = parameter_counts(job.model)
        measured["memory"] = memory(first, steady, own) | left(steady, before, cached)
        measured["time"] = times([timed(step, job) for _ in range(TIMED_STEPS)])
        measured["profile"] = cuda.profiled(lambda: step(job, lambda _: nullcontext()))
    if scenario.attention == "eager":  # all its products are matmuls, the only ones the profiler counts
        measured["flops"] = {"total": measured["profile"]["matmul_flops"]}


def taken_apart(job: Job) -> Callable[[], None]:
    """Frees the model's memory and the input's; what is given allocates them again, in the order of a plain script's
    `model.to("cuda")`: parameters, buffers, those of the averaged copy, the input.

    Building a model on the GPU leaves the allocator's blocks in another order, with gaps where temporaries were. The
    weights are random again, and so is the input: equal tokens would make the embedding's backward another one.
    """
    models = [job.model] if job.weight_ema is None else [job.model, job.weight_ema.module]
    tensors = [*(x for model in models for x in (*model.parameters(), *model.buffers())), job.inputs]
    values = [(x.shape, None if isinstance(x, torch.nn.Parameter) else x.to("cpu", copy=True)) for x in tensors]
    vocabulary = next(job.model.parameters()).shape[0]
    for x in tensors:
        x.data = x.data.new_empty(0)
    torch.cuda.empty_cache()

    def lay_out() -> None:
        for x, (shape, value) in zip(tensors, values, strict=True):
            x.data = x.data.new_empty(shape)
            if value is None:
                x.data.normal_(std=WEIGHTS_DEVIATION)
            else:
                x.data.copy_(value)
        if job.inputs.is_floating_point():
            job.inputs.normal_()
        else:
            job.inputs.random_(vocabulary)

    return lay_out


def prevent_skipped_steps(job: Job) -> None:
    """A GradScaler's first scale overflows and the optimizer's step is left out: start at 1. It changes no size."""
    if job.scaler is not None:
        job.scaler.load_state_dict(job.scaler.state_dict() | {"scale": 1.0})


def counted(step: Step, job: Job) -> tuple[cuda.PhaseCounters, int | None]:
    marks = cuda.PhaseCounters()
    with cuda.loss_marked(job.model, marks):
        return marks, step(job, marks.during)


def timed(step: Step, job: Job) -> dict[str, float]:
    marks = cuda.PhaseTimes()
    step(job, marks.during)
    return marks.seconds()


def left(steady: cuda.PhaseCounters, before: int, cached: int | None) -> dict[str, int]:
    """What forward leaves: for the tokens to come a cache; without one what backward needs, beyond what is allocated
    `before`, between the steps."""
    if cached is not None:
        return {"kv_cache_bytes": cached}
    return {"saved_activation_bytes": steady.first_forward_end_bytes - before}


def memory(first: cuda.PhaseCounters, steady: cuda.PhaseCounters, own: int) -> dict[str, Any]:
    """The Estimate's names. torch's counters are as torch gives them: allocated with the libraries' workspaces.

    `own`: this process's bytes of the device after the steady step, which are those at its peak, since the allocator
    returns nothing.
    """
    return {
        "phases": steady.named(),
        "first_step_phases": first.named(),
        "first_step_peak_allocated_bytes": first.highest("allocated"),
        **{f"peak_{counter}_bytes": steady.highest(counter) for counter in cuda.COUNTERS},
        "peak_phase": steady.peak_phase,
        "device_bytes": own,
        "context_bytes": own - torch.cuda.memory_reserved(),
        "allocation_retries": torch.cuda.memory_stats()["num_alloc_retries"],
    }


def times(steps: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The median of each phase and of the step."""
    medians = {f"{name}_seconds": median(step[name] for step in steps) for name in steps[0]}
    return {"steps": len(steps)} | medians


def outcome(record: Record, seconds: float) -> str:
    """One line for who watches; `seconds`: what it took of the GPU's time."""
    if record.failed or "answer" in record.measured:
        found = record.failed or "answered"
    else:
        step, peak = record.measured["time"]["step_seconds"], record.measured["memory"]["peak_allocated_bytes"]
        found = f"{peak / 2**30:8.2f} GiB {step * 1000:9.1f} ms"
    return f"{seconds:6.1f} s  {found}  {record.id}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
