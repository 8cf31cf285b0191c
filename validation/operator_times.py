"""Times of single operators on a CUDA device: `python -m validation operators`.

Needs torch and nvidia-ml-py, and nothing of calc, transformers or peft. Each row is appended as soon as it is
measured; rows that the file already holds for these versions are left out, so a run that was stopped goes on.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch

from validation import nvml
from validation.attention_backends import restricted_to
from validation.operator_calls import call_of
from validation.operator_shapes import OperatorCase, operator_cases
from validation.records import FOLDER, commit, drop_unfinished_line, file_of, now

DONE, NO_CUDA = 0, 2
SEED = 0
WARM_UP_CALLS = 3
"""The first loads kernels and chooses among them."""
FEWEST_REPEATS = 5
ROW_SECONDS = 0.15
"""Some 1,560 rows of so long are four minutes; tensors, warm-ups and slow calls come on top."""
L2_SIZES_FLUSHED = 2
LEAD, LEAST_LEAD_SECONDS = 2, 50e-6
"""How long the GPU is kept waiting before a call: so many times what the host takes to issue it."""


class Timer:
    """Seconds of a call on the GPU's clock, by CUDA events, its data not in the L2 cache and the host well ahead.

    Before each call the GPU spins until the host has issued all the call's kernels, then a buffer larger than the L2
    cache is written (as triton.testing.do_bench does). So the host's time is not in the GPU's, and is kept apart.
    """

    def __init__(self, device: str = "cuda") -> None:
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self.scratch = torch.empty(L2_SIZES_FLUSHED * l2_bytes, dtype=torch.uint8, device=device)
        self.cycles_per_second = 10**6 * nvml.max_sm_clock_mhz()

    def once(self, run: Callable[[], Any], lead_seconds: float) -> tuple[float, float]:
        """Seconds on the GPU, and seconds that the host took to issue the call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(lead_seconds * self.cycles_per_second))
        self.scratch.zero_()
        start.record()
        began = time.perf_counter()
        run()
        host_seconds = time.perf_counter() - began
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000, host_seconds

    def measure(self, run: Callable[[], Any], budget_seconds: float) -> dict[str, Any]:
        """Medians and quartiles of as many calls as the budget has time for, at least FEWEST_REPEATS."""
        warm_up = [self.once(run, LEAST_LEAD_SECONDS) for _ in range(WARM_UP_CALLS)]
        lead = max(LEAST_LEAD_SECONDS, LEAD * warm_up[-1][1])
        until = time.perf_counter() + budget_seconds
        spans: list[tuple[float, float]] = []
        while len(spans) < FEWEST_REPEATS or time.perf_counter() < until:
            spans.append(self.once(run, lead))
        lower, middle, upper = quantiles((gpu for gpu, _ in spans), n=4)
        _, host_middle, _ = quantiles((host for _, host in spans), n=4)
        return {
            "seconds": middle,
            "lower_quartile_seconds": lower,
            "upper_quartile_seconds": upper,
            "host_seconds": host_middle,
            "repeats": len(spans),
            "sm_clock_mhz": nvml.sm_clock_mhz(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The GPU as this process found it."""

    gpu_name: str
    versions: dict[str, str | None]
    commit: str
    timer: Timer


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("operators needs a CUDA device, and torch sees none", file=sys.stderr)
        return NO_CUDA
    return work(operator_cases(), start(), options.records, time.time() + 60 * options.minutes, options.row_seconds)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m validation operators", description=__doc__)
    options.add_argument("--minutes", type=float, default=8, help="Start no row after so many. Default: %(default)s.")
    options.add_argument(
        "--row-seconds", type=float, default=ROW_SECONDS, help="Time to repeat one row in. Default: %(default)s."
    )
    folder = FOLDER / "operators"
    options.add_argument("--records", type=Path, default=folder, help="Folder to write to. Default: %(default)s.")
    return options


def start() -> Machine:
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": nvml.driver_version()}
    torch.manual_seed(SEED)
    return Machine(gpu_name=torch.cuda.get_device_properties(0).name, versions=versions, commit=commit(), timer=Timer())


def work(cases: Sequence[OperatorCase], machine: Machine, folder: Path, until: float, row_seconds: float) -> int:
    """Times the cases that are not recorded yet."""
    path = folder / file_of(machine.gpu_name)
    folder.mkdir(parents=True, exist_ok=True)
    drop_unfinished_line(path)
    recorded = {row["id"] for row in read_rows(path) if row["versions"] == machine.versions}
    remaining = [case for case in cases if case.id not in recorded]
    with path.open("a", encoding="utf-8") as file:
        while remaining and time.time() < until:
            row = row_of(remaining.pop(0), machine, row_seconds)
            print(json.dumps(row), file=file, flush=True)
            print(outcome(row), flush=True)
            torch.cuda.empty_cache()
            # An error that broke the context is raised here again, and ends the process: run the command once more.
            torch.cuda.synchronize()
    print(f"{len(remaining)} of {len(cases)} rows remain")
    return DONE


def row_of(case: OperatorCase, machine: Machine, seconds: float, device: str = "cuda") -> dict[str, Any]:
    """One line of the table; `error` instead of times where the case does not run."""
    row: dict[str, Any] = {
        "kind": "operator",
        "id": case.id,
        "operator": case.operator,
        "phase": case.phase,
        "shape": case.shape,
        "dtype": case.dtype,
        "backend": case.backend,
        "gpu_name": machine.gpu_name,
        "versions": machine.versions,
        "commit": machine.commit,
        "recorded_at": now(),
    }
    try:
        with restricted_to(case.backend), fp32_products(as_tf32=case.dtype == "tf32"):
            call = call_of(case, device)
            row |= {"flops": call.flops, "bytes": call.bytes} | machine.timer.measure(call.run, seconds)
    except torch.OutOfMemoryError:
        return row | {"error": "out of memory"}
    except RuntimeError as error:
        return row | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    rates = {f"{unit}_per_second": row[unit] / row["seconds"] for unit in ("flops", "bytes") if row[unit]}
    return row | rates


@contextmanager
def fp32_products(as_tf32: bool) -> Iterator[None]:
    """fp32 matrices multiplied as they are, or as TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if as_tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The finished rows of one file."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def outcome(row: dict[str, Any]) -> str:
    """One line for who watches."""
    if "error" in row:
        return f"{row['error']}  {row['id']}"
    teraflops, gigabytes = row.get("flops_per_second", 0) / 1e12, row.get("bytes_per_second", 0) / 1e9
    return f"{row['seconds'] * 1e6:12.1f} µs {teraflops:7.1f} TFLOP/s {gigabytes:7.1f} GB/s  {row['id']}"
