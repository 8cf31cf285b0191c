"""Timing operators, with fakes where it meets CUDA (events, the spinning kernel) and NVML; the calls run on a CPU."""

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from validation import nvml, operator_times
from validation.operator_shapes import OperatorCase, Phase, attention_shape
from validation.operator_times import Machine, Timer, row_of
from validation.records import FOLDER

FORWARD: Phase = "forward"
L2_BYTES = 1000
DOCS = Path(__file__).parents[2] / "docs" / "operators.md"
FOREVER = float("inf")
MATMUL = OperatorCase(
    operator="matmul", phase=FORWARD, shape={"batch": 1, "M": 5, "N": 6, "K": 7, "layout": "nt"}, dtype="fp32"
)
COPY = OperatorCase(operator="copy", phase=FORWARD, shape={"elements": 100}, dtype="bf16")
NOTHING = OperatorCase(operator="nothing", phase=FORWARD, shape={}, dtype="")
ATTENTION = partial(
    OperatorCase, operator="attention", phase=FORWARD, shape=attention_shape(2, 4, 4, 8, 8, 16, True), dtype="fp32"
)


@dataclass
class FakeCuda:
    """A GPU on which the n-th timed call takes n milliseconds, and a host that takes 1 ms to issue one."""

    done: list[str] = field(default_factory=list)
    spun_cycles: list[int] = field(default_factory=list)
    calls: int = 0
    host_seconds: float = 0.0

    def synchronize(self) -> None:
        self.done.append("synchronize")

    def sleep(self, cycles: int) -> None:
        self.done.append("spin")
        self.spun_cycles.append(cycles)

    def perf_counter(self) -> float:
        self.host_seconds += 0.001
        return self.host_seconds

    def event(self, enable_timing: bool) -> Any:
        fake = self

        class Event:
            def record(self) -> None:
                fake.done.append("record")

            def elapsed_time(self, end: Any) -> float:
                fake.calls += 1
                return float(fake.calls)

        return Event()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    properties = SimpleNamespace(name="NVIDIA Fake 80GB", L2_cache_size=L2_BYTES)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", fake.sleep)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(operator_times.time, "perf_counter", fake.perf_counter)
    monkeypatch.setattr(nvml, "max_sm_clock_mhz", lambda: 2000)
    monkeypatch.setattr(nvml, "sm_clock_mhz", lambda: 1980)
    monkeypatch.setattr(operator_times, "row_of", partial(row_of, device="cpu"))
    return fake


@pytest.fixture
def machine(fake: FakeCuda) -> Machine:
    versions: dict[str, str | None] = {"torch": "2.13.0", "cuda": "13.0", "driver": "600.1"}
    return Machine(gpu_name="NVIDIA Fake 80GB", versions=versions, commit="abc", timer=Timer("cpu"))


# --- one call, one row ----------------------------------------------------------------------------------------------


def test_a_call_is_timed_alone_with_a_cold_cache_behind_a_spinning_gpu(fake: FakeCuda) -> None:
    timer = Timer("cpu")
    assert timer.scratch.nbytes == 2 * L2_BYTES
    timer.scratch.fill_(1)
    seconds, host_seconds = timer.once(lambda: fake.done.append("call"), 0.01)
    assert fake.done == ["synchronize", "spin", "record", "call", "record", "synchronize"]
    assert fake.spun_cycles == [20_000_000]  # 10 ms at 2000 MHz
    assert not timer.scratch.any()
    assert (seconds, host_seconds) == (0.001, pytest.approx(0.001))


def test_times_are_the_median_and_quartiles_after_the_warm_up(fake: FakeCuda) -> None:
    times = Timer("cpu").measure(lambda: None, budget_seconds=0.0)
    # Calls 1 to 3 warm up; 4 to 8 milliseconds are kept.
    assert times == {
        "seconds": 0.006,
        "lower_quartile_seconds": pytest.approx(0.0045),
        "upper_quartile_seconds": pytest.approx(0.0075),
        "host_seconds": pytest.approx(0.001),
        "repeats": 5,
        "sm_clock_mhz": 1980,
    }
    # The GPU spins twice as long as the host took, once that is known.
    assert fake.spun_cycles == [100_000] * 3 + [pytest.approx(4_000_000, rel=1e-6)] * 5


def test_a_row_is_repeated_for_its_budget(fake: FakeCuda) -> None:
    # A clock that is read is a millisecond on: two for each of the first five repeats, then three; 10 + 7 * 3 > 30.
    assert Timer("cpu").measure(lambda: None, budget_seconds=0.0301)["repeats"] == 5 + 7


def test_a_row_says_what_was_timed_where_and_how_fast(machine: Machine) -> None:
    row = row_of(MATMUL, machine, 0.0, "cpu")
    flops, moved = 2 * 5 * 6 * 7, 4 * (5 * 7 + 7 * 6 + 5 * 6)
    expected = {
        "kind": "operator",
        "id": "matmul?phase=forward&batch=1&M=5&N=6&K=7&layout=nt&dtype=fp32",
        "operator": "matmul",
        "phase": "forward",
        "shape": {"batch": 1, "M": 5, "N": 6, "K": 7, "layout": "nt"},
        "dtype": "fp32",
        "backend": "",
        "gpu_name": "NVIDIA Fake 80GB",
        "versions": machine.versions,
        "commit": "abc",
        "seconds": 0.006,
        "flops": flops,
        "bytes": moved,
        "flops_per_second": flops / 0.006,
        "bytes_per_second": moved / 0.006,
    }
    assert {name: row[name] for name in expected} == expected


def test_rates_only_of_what_there_is(machine: Machine) -> None:
    copied, nothing = row_of(COPY, machine, 0.0, "cpu"), row_of(NOTHING, machine, 0.0, "cpu")
    assert "flops_per_second" not in copied
    assert copied["bytes_per_second"] == pytest.approx(2 * 200 / 0.006)
    assert "bytes_per_second" not in nothing
    assert nothing["seconds"] > 0


@pytest.mark.parametrize(("dtype", "precision"), [("tf32", "high"), ("fp32", "highest"), ("bf16", "highest")])
def test_tf32_is_asked_of_torch_for_its_rows_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, dtype: str, precision: str
) -> None:
    seen: list[str] = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: (seen.append(torch.get_float32_matmul_precision()), mm(a, b))[1])
    before = torch.get_float32_matmul_precision()
    assert "error" not in row_of(replace(MATMUL, dtype=dtype), machine, 0.0, "cpu")
    assert set(seen) == {precision}
    assert torch.get_float32_matmul_precision() == before


def test_a_backend_that_does_not_take_a_shape_is_recorded_with_its_reason(machine: Machine) -> None:
    row = row_of(ATTENTION(backend="cudnn"), machine, 0.0, "cpu")  # there is no cuDNN on a CPU
    assert row["error"].startswith("RuntimeError: No")
    assert "seconds" not in row
    assert "seconds" in row_of(ATTENTION(backend="math"), machine, 0.0, "cpu")


def test_an_out_of_memory_is_recorded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(operator_times, "call_of", raise_out_of_memory)
    row = row_of(MATMUL, machine, 0.0, "cpu")
    assert row["error"] == "out of memory"
    assert "seconds" not in row


# --- the file, and going on -----------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "nvidia-fake-80gb.jsonl").read_text().splitlines()]


def test_rows_that_are_recorded_are_left_out(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "operators"
    assert operator_times.work([MATMUL], machine, folder, FOREVER, 0.0) == operator_times.DONE
    assert operator_times.work([MATMUL, COPY], machine, folder, FOREVER, 0.0) == operator_times.DONE
    assert [row["id"] for row in rows(folder)] == [MATMUL.id, COPY.id]
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 2 rows remain"


def test_one_that_does_not_run_is_not_tried_again(machine: Machine, tmp_path: Path) -> None:
    cudnn = ATTENTION(backend="cudnn")
    for _ in range(2):
        operator_times.work([cudnn, COPY], machine, tmp_path, FOREVER, 0.0)
    assert [("error" in row, row["id"]) for row in rows(tmp_path)] == [(True, cudnn.id), (False, COPY.id)]


def test_other_versions_are_timed_again(machine: Machine, tmp_path: Path) -> None:
    newer = replace(machine, versions=machine.versions | {"driver": "601.0"})
    for each in (machine, newer, newer):
        operator_times.work([COPY], each, tmp_path, FOREVER, 0.0)
    assert [row["versions"]["driver"] for row in rows(tmp_path)] == ["600.1", "601.0"]


def test_a_row_that_a_killed_run_left_unfinished_is_timed_again(machine: Machine, tmp_path: Path) -> None:
    operator_times.work([MATMUL, COPY], machine, tmp_path, FOREVER, 0.0)
    path = tmp_path / "nvidia-fake-80gb.jsonl"
    path.write_text(path.read_text()[:-20])
    operator_times.work([MATMUL, COPY], machine, tmp_path, FOREVER, 0.0)
    assert [row["id"] for row in rows(tmp_path)] == [MATMUL.id, COPY.id]


def test_no_row_starts_after_the_time_is_up(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert operator_times.work([MATMUL, COPY], machine, tmp_path, 0.0, 0.0) == operator_times.DONE
    assert rows(tmp_path) == []
    assert capsys.readouterr().out == "2 of 2 rows remain\n"


def test_an_error_that_broke_the_device_ends_the_process_once_its_row_is_recorded(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_error(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(operator_times, "call_of", raise_error)
    monkeypatch.setattr(torch.cuda, "synchronize", raise_error)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        operator_times.work([MATMUL, COPY], machine, tmp_path, FOREVER, 0.0)
    errors = [row["error"] for row in rows(tmp_path)]
    assert errors == ["RuntimeError: CUDA error: an illegal memory access was encountered"]


def test_what_is_watched_has_the_time_and_the_rates(machine: Machine) -> None:
    row = row_of(MATMUL, machine, 0.0, "cpu") | {"flops_per_second": 6e14, "bytes_per_second": 2e12}
    assert operator_times.outcome(row) == f"      6000.0 µs   600.0 TFLOP/s  2000.0 GB/s  {MATMUL.id}"
    assert operator_times.outcome({"error": "out of memory", "id": "x"}) == "out of memory  x"


def test_the_command_asks_for_eight_minutes_and_a_folder_that_no_training_record_is_read_from() -> None:
    options = operator_times.parser().parse_args([])
    assert options.minutes == 8
    assert options.records.parts[-3:] == ("validation", "records", "operators")


def test_the_docs_say_how_many_rows_are_measured() -> None:
    count = sum(len(list(operator_times.read_rows(path))) for path in (FOLDER / "operators").glob("*.jsonl"))
    assert f"**{count:,} rows are measured" in DOCS.read_text(encoding="utf-8")


# --- the driver; without CUDA, without the other libraries ----------------------------------------------------------


def test_the_machine_is_described_by_torch_and_the_driver(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "driver_version", lambda: "600.1")
    monkeypatch.setattr(operator_times, "Timer", partial(Timer, "cpu"))
    found = operator_times.start()
    assert found.gpu_name == "NVIDIA Fake 80GB"
    assert found.versions == {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": "600.1"}
    assert found.timer.cycles_per_second == 2_000_000_000


def test_clocks_are_those_of_the_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "device", lambda: "gpu 0")
    clocks = {("gpu 0", nvml.pynvml.NVML_CLOCK_SM): 1980}
    monkeypatch.setattr(nvml.pynvml, "nvmlDeviceGetClockInfo", lambda *asked: clocks[asked])
    monkeypatch.setattr(nvml.pynvml, "nvmlDeviceGetMaxClockInfo", lambda *asked: clocks[asked] + 1)
    assert (nvml.sm_clock_mhz(), nvml.max_sm_clock_mhz()) == (1980, 1981)


def test_without_cuda_it_says_so_and_exits_2() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "validation", "operators"],
        capture_output=True,
        text=True,
        check=False,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert (run.returncode, run.stderr) == (2, "operators needs a CUDA device, and torch sees none\n")


WITH_TORCH_ALONE = """
import sys
for name in ("calc", "pydantic", "transformers", "peft", "numpy"):
    sys.modules[name] = None  # importing it fails
from validation import operator_times
print(len(operator_times.operator_cases()) > 1000)
"""


def test_timing_needs_torch_and_the_drivers_library_alone() -> None:
    assert subprocess.check_output([sys.executable, "-W", "ignore", "-c", WITH_TORCH_ALONE], text=True) == "True\n"


@pytest.mark.gpu
def test_real_times_are_below_what_the_device_can_do(tmp_path: Path) -> None:
    machine = operator_times.start()
    copy = replace(COPY, shape={"elements": 2**28})
    attention = replace(ATTENTION(backend="flash"), dtype="bf16", phase="backward")
    operator_times.work([NOTHING, MATMUL, copy, attention], machine, tmp_path, FOREVER, 0.1)
    (path,) = tmp_path.iterdir()
    nothing, matmul, copied, backward = map(json.loads, path.read_text().splitlines())
    assert nothing["seconds"] < matmul["seconds"] < copied["seconds"]
    assert nothing["seconds"] < backward["seconds"] < copied["seconds"]
    assert 1e11 < copied["bytes_per_second"] < 1e13
