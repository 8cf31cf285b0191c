"""Measuring, with fakes where it meets the driver (NVML) and torch's CUDA statistics; the steps are real, on a CPU."""

import base64
import json
import subprocess
import sys
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from calc import Scenario, estimate
from validation import cuda, machine, measure, nvml
from validation.attention_backends import restricted_to
from validation.cases import Case, as_object, case
from validation.compare import compare
from validation.generation_cases import generating
from validation.machine import Machine
from validation.models import build_job
from validation.questions import Question
from validation.records import Record, read
from validation.step import Phase, forward
from validation.supervisor import FOREVER, NEW_PROCESS

MIB = 2**20
TINY = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
EAGER = case(TINY, 2, 8, attention="eager")
OTHER = case(TINY, 1, 8, attention="eager")
ACCUMULATED = case(TINY, 1, 8, attention="eager", gradient_accumulation_steps=2)
WORKSPACES = {"forward_thread_bytes": 32 * MIB, "autograd_thread_bytes": 32 * MIB}
FRESH = {"measured_before": 0, "allocated_bytes": 0, "reserved_bytes": 0, "context_bytes": 0}


@dataclass
class FakeCuda:
    """torch.cuda's statistics as a script: every peak that is read is 1 MiB above the one before."""

    allocated: int = 100 * MIB
    peaks_read: int = 0
    resets: int = 0
    seconds: float = 0.0
    context_bytes: int = 500 * MIB
    emptied: int = 0
    workspaces: int = 64 * MIB
    history: list[str | None] = field(default_factory=list)

    def memory_stats(self) -> dict[str, int]:
        self.peaks_read += 1
        peak = self.allocated + self.peaks_read * MIB
        return {
            "allocated_bytes.all.peak": peak,
            "allocated_bytes.all.current": self.allocated + self.peaks_read,
            "reserved_bytes.all.peak": 2 * peak,
            "reserved_bytes.all.current": 2 * self.allocated,
            "requested_bytes.all.peak": peak - 7,
            "requested_bytes.all.current": self.allocated - 7,
            "num_alloc_retries": 0,
        }

    def reset_peak_memory_stats(self) -> None:
        self.resets += 1

    def memory_allocated(self) -> int:
        return self.allocated

    def clear_workspaces(self) -> None:
        self.allocated -= self.workspaces
        self.workspaces = 0

    def memory_reserved(self) -> int:
        return 2 * self.allocated

    def empty_cache(self) -> None:
        self.emptied += 1

    def used_bytes(self) -> int:
        return 1000 * MIB + self.context_bytes + self.memory_reserved()

    def event(self, enable_timing: bool) -> Any:
        fake = self

        class Event:
            def record(self) -> None:
                fake.seconds += 0.5
                self.at = fake.seconds

            def elapsed_time(self, end: Any) -> float:
                return 1000 * (end.at - self.at)

        return Event()


MACHINE = Machine(
    gpu_name="NVIDIA Fake 80GB",
    versions={"torch": "2.13.0", "cuda": "13.0", "driver": "600.1"},
    used_before_context_bytes=1000 * MIB,
    workspaces=WORKSPACES,
    facts={"compute_capability": "9.0"},
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name in ("memory_stats", "reset_peak_memory_stats", "memory_allocated", "memory_reserved", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", fake.clear_workspaces, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(nvml, "used_bytes", fake.used_bytes)
    monkeypatch.setattr(
        measure, "build_job", lambda scenario, config, _, kernel: build_job(scenario, config, "cpu", kernel)
    )
    monkeypatch.setattr(measure, "start", lambda: MACHINE)
    return fake


def measured(asked: Case) -> dict[str, Any]:
    found = measure.measure(asked, MACHINE, FRESH).measured
    assert "error" not in found, found["error"]
    return found


# --- one case ------------------------------------------------------------------------------------------------------


def test_each_phase_has_its_own_peak_and_the_first_step_is_apart(fake: FakeCuda) -> None:
    memory = measured(EAGER)["memory"]
    # Read before the loss and at each end: 5 times in the first step, then 5 times in the steady one.
    assert [phase["peak_allocated_bytes"] for phase in memory["phases"]] == [(100 + n) * MIB for n in (8, 7, 9, 10)]
    assert [phase["name"] for phase in memory["phases"]] == ["forward", "loss", "backward", "optimizer"]
    assert [phase["name"] for phase in memory["first_step_phases"]] == ["forward", "loss", "backward", "optimizer"]
    assert memory["first_step_peak_allocated_bytes"] == 105 * MIB
    assert memory["peak_allocated_bytes"] == 110 * MIB
    assert memory["peak_requested_bytes"] == 110 * MIB - 7
    assert memory["peak_reserved_bytes"] == 220 * MIB
    assert memory["peak_phase"] == "optimizer"
    assert fake.resets >= 8


def test_a_peak_before_the_loss_is_forwards(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    names, readings = list(fake.memory_stats()), iter([9, 3, 5])
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: dict.fromkeys(names, next(readings)))
    marks = cuda.PhaseCounters()
    with marks.during(Phase.FORWARD), marks.inside("loss"):
        pass
    forward, loss = marks.named()
    assert (forward["peak_allocated_bytes"], forward["end_allocated_bytes"]) == (9, 5)
    assert (loss["peak_allocated_bytes"], loss["end_allocated_bytes"]) == (3, 3)


@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "rank": 2}])
def test_the_loss_is_computed_inside_its_mark_and_only_while_it_is_marked(adapter: dict[str, Any] | None) -> None:
    job = build_job(as_object(case(TINY, 1, 8, adapter=adapter).scenario), TINY, "cpu", "eager")
    computed: list[str] = []

    class Marks(cuda.PhaseCounters):
        @contextmanager
        def inside(self, name: str) -> Iterator[None]:
            yield
            computed.append(name)

    with cuda.loss_marked(job.model, Marks()):
        assert forward(job).loss.requires_grad
    forward(job)
    assert computed == ["loss"]


def test_saved_activations_are_what_the_forward_adds_to_what_lives_between_steps(fake: FakeCuda) -> None:
    assert measured(EAGER)["memory"]["saved_activation_bytes"] == 8  # the eighth reading: allocated + 8


def test_device_bytes_leave_out_what_others_use_and_context_what_torch_reserves(fake: FakeCuda) -> None:
    memory = measured(EAGER)["memory"]
    assert memory["device_bytes"] == fake.context_bytes + fake.memory_reserved()
    assert memory["context_bytes"] == fake.context_bytes


def test_workspaces_are_what_is_allocated_when_the_model_has_gone(fake: FakeCuda) -> None:
    assert measured(EAGER)["memory"]["library_workspace_bytes"] == fake.allocated


@pytest.mark.parametrize("fields", [{}, {"adapter": {"kind": "lora", "rank": 2}}, {"weight_ema": True}])
def test_what_persists_is_allocated_again_in_a_plain_scripts_order(fake: FakeCuda, fields: dict[str, Any]) -> None:
    config = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2}
    config |= {"num_hidden_layers": 1, "tie_word_embeddings": True}
    job = build_job(as_object(case(config, 2, 8, **fields).scenario), config, "cpu", "eager")
    averaged = [*job.weight_ema.module.parameters(), *job.weight_ema.module.buffers()] if job.weight_ema else []
    tensors = [*job.model.parameters(), *job.model.buffers(), *averaged, job.input_ids]
    shapes, buffers = [x.shape for x in tensors], [x.clone() for x in job.model.buffers()]
    lay_out = measure.taken_apart(job)
    assert [x.nbytes for x in tensors] == [0] * len(tensors)
    assert fake.emptied == 1
    made: list[int] = []
    with patch.object(torch.Tensor, "new_empty", note_shape(made)):
        lay_out()
    assert made == [shape.numel() for shape in shapes]
    assert [x.shape for x in tensors] == shapes
    assert all(torch.equal(x, before) for x, before in zip(job.model.buffers(), buffers, strict=True))
    assert 1 < len(job.input_ids.unique()) <= 16
    loss = forward(job).loss
    loss.backward()
    assert loss.isfinite()


def note_shape(made: list[int]) -> Callable[..., torch.Tensor]:
    new_empty = torch.Tensor.new_empty

    def noted(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        made.append(shape.numel())
        return new_empty(x, shape)

    return noted


def test_micro_batches_give_the_highest_peak_and_the_last_end(fake: FakeCuda) -> None:
    phases = measured(ACCUMULATED)["memory"]["phases"]
    # Each step reads 9 times: forward 3, backward 1, forward 3, backward 1, optimizer 1.
    assert [phase["peak_allocated_bytes"] for phase in phases] == [(100 + n) * MIB for n in (16, 15, 17, 18)]
    assert [phase["end_allocated_bytes"] for phase in phases] == [100 * MIB + n for n in (16, 15, 17, 18)]


def test_times_are_medians_of_five_steps(fake: FakeCuda) -> None:
    # Every event is half a second after the one before: start and end of three phases.
    assert measured(EAGER)["time"] == {
        "steps": 5,
        "forward_seconds": 0.5,
        "backward_seconds": 0.5,
        "optimizer_seconds": 0.5,
        "step_seconds": 2.5,
    }
    assert measure.times([{"step": 1.0}, {"step": 9.0}, {"step": 2.0}]) == {"steps": 3, "step_seconds": 2.0}


def test_matmul_flops_of_an_eager_step_are_the_profilers(fake: FakeCuda) -> None:
    # Per token and layer 24H² + 4HS, head 2HV; three times that with backward: 16 tokens, H = 16, S = 8, V = 64.
    forward = 16 * (24 * 16**2 + 4 * 16 * 8 + 2 * 16 * 64)
    assert measured(EAGER)["flops"] == {"total": 3 * forward}


GENERATED = generating(TINY, 2, 6, 4, precision="fp32", attention="eager")


def test_a_generation_has_its_own_phases_and_leaves_a_cache(fake: FakeCuda) -> None:
    found = measured(GENERATED)
    # Each generation reads at the end of each pass: the prompt's, three between, the last token's.
    phases = found["memory"]["phases"]
    assert [phase["name"] for phase in phases] == ["prefill", "between", "decode"]
    assert [phase["peak_allocated_bytes"] for phase in phases] == [(100 + n) * MIB for n in (6, 9, 10)]
    assert found["memory"]["peak_phase"] == "decode"
    assert found["memory"]["first_step_peak_allocated_bytes"] == 105 * MIB
    assert "saved_activation_bytes" not in found["memory"]
    answer = estimate(Scenario(**GENERATED.scenario))
    assert found["memory"]["kv_cache_bytes"] == answer.memory.kv_cache_bytes
    assert found["flops"] == {"total": answer.flops.total}
    assert found["parameters"]["total"] == answer.parameters.total


def test_a_generations_passes_are_timed_apart(fake: FakeCuda) -> None:
    assert measured(GENERATED)["time"] == {
        "steps": 5,
        "prefill_seconds": 0.5,
        "between_seconds": 1.5,
        "decode_seconds": 0.5,
        "step_seconds": 4.5,
    }


def test_a_recorded_generation_is_compared(fake: FakeCuda) -> None:
    found = {each.quantity for each in compare(measure.measure(GENERATED, MACHINE, FRESH))}
    assert {"memory.kv_cache_bytes", "memory.phases.decode.peak_allocated_bytes", "flops.total"} <= found
    assert not {name for name in found if "reserved" in name or "device" in name}


def test_an_out_of_memory_is_recorded_with_the_counters(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setitem(measure.STEPS, "training", raise_out_of_memory)
    record = measure.measure(EAGER, MACHINE, FRESH)
    assert record.measured["out_of_memory"]["peak_allocated_bytes"] == 101 * MIB
    assert record.failed == "out of memory"
    assert "memory" not in record.measured


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ImportError])
def test_what_cannot_run_is_recorded_with_its_reason_and_place(
    fake: FakeCuda, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def raise_error(*_: object) -> None:
        raise error("No available kernel.\nmore")

    monkeypatch.setitem(measure.STEPS, "training", raise_error)
    failed = measure.measure(EAGER, MACHINE, FRESH).failed
    assert failed.startswith(f"{error.__name__}: No available kernel. (test_measure.py:")


def test_a_measured_case_leaves_no_model_behind(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[weakref.ref[Any]] = []

    def build_and_note(*arguments: Any) -> Any:
        job = build_job(arguments[0], arguments[1], "cpu", arguments[3])
        jobs.append(weakref.ref(job.model))
        return job

    monkeypatch.setattr(measure, "build_job", build_and_note)
    measure.measure(EAGER, MACHINE, FRESH)
    MACHINE.idle()
    assert [job() for job in jobs] == [None]


def test_a_record_says_what_it_was_measured_with(fake: FakeCuda) -> None:
    found = measured(EAGER)
    assert found["gpu"] == MACHINE.facts | {"workspaces": WORKSPACES}
    assert found["process"] == FRESH
    assert found["seed"] == measure.SEED


def test_the_scaler_cannot_skip_the_step_that_makes_the_states() -> None:
    scaled = case(TINY, 1, 8, attention="eager", precision="fp16-autocast")
    job = build_job(as_object(scaled.scenario), TINY, "cpu", "eager")
    measure.prevent_skipped_steps(job)
    assert job.scaler is not None
    assert job.scaler.get_scale() == 1.0


# --- the worker, its records, and going on -------------------------------------------------------------------------


def fake_measure(*out_of_memory: Case) -> Callable[[measure.Asked, Machine, dict[str, int]], Record]:
    def measured_record(asked: measure.Asked, machine: Machine, process: dict[str, int]) -> Record:
        found = {"out_of_memory": {}} if asked in out_of_memory else {"memory": {"peak_allocated_bytes": 1}}
        return Record(
            kind="measurement",
            id=asked.id,
            scenario=asked.scenario,
            holdout=asked.holdout,
            gpu_name=machine.gpu_name,
            versions=machine.versions,
            measured=found | {"time": {"step_seconds": 0.1}, "process": process},
        )

    return measured_record


@pytest.fixture
def idle(fake: FakeCuda) -> FakeCuda:
    fake.allocated = fake.workspaces  # what a finished case leaves
    return fake


def recorded(folder: Path) -> list[Record]:
    return list(read(folder / "nvidia-fake-80gb.jsonl"))


def ids(folder: Path) -> list[str]:
    return [record.id for record in recorded(folder)]


def work(cases: Sequence[measure.Asked], folder: Path, until: float = FOREVER, **options: bool) -> int:
    return measure.work({"some": cases}, folder, until, **options)


def test_a_new_process_goes_on_after_an_out_of_memory(
    idle: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "measure", fake_measure(EAGER))
    cases = [EAGER, OTHER, ACCUMULATED]
    assert work(cases, tmp_path) == NEW_PROCESS
    assert ids(tmp_path) == [EAGER.id]
    assert work(cases, tmp_path) == measure.DONE
    assert ids(tmp_path) == [each.id for each in cases]
    assert capsys.readouterr().out.endswith("some: 0 of 3 remain\n")


def test_a_case_that_leaves_a_model_behind_ends_its_process(
    idle: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    idle.allocated += measure.LARGEST_LEFTOVER_BYTES + 1
    monkeypatch.setattr(measure, "measure", fake_measure())
    assert work([EAGER, OTHER], tmp_path) == NEW_PROCESS
    assert ids(tmp_path) == [EAGER.id]


def test_an_error_that_spoils_the_context_ends_its_process(
    idle: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure_and_spoil(*arguments: Any) -> Record:
        monkeypatch.setattr(torch.cuda, "empty_cache", raise_device_error)
        return fake_measure()(*arguments)

    def raise_device_error() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(measure, "measure", measure_and_spoil)
    assert work([EAGER, OTHER], tmp_path) == NEW_PROCESS
    assert ids(tmp_path) == [EAGER.id]


def test_each_record_knows_what_its_process_held_before(
    idle: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure, "measure", fake_measure())
    work([EAGER, OTHER], tmp_path)
    held = {
        "allocated_bytes": 0,
        "reserved_bytes": 0,
        "context_bytes": idle.context_bytes,
    }
    process = [record.measured["process"] for record in recorded(tmp_path)]
    assert process == [{"measured_before": 0} | held, {"measured_before": 1} | held]
    assert idle.emptied == 3


def test_other_versions_are_measured_again(idle: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "measure", fake_measure())
    assert work([EAGER], tmp_path) == measure.DONE
    newer = replace(MACHINE, versions=MACHINE.versions | {"driver": "601.0"})
    monkeypatch.setattr(measure, "start", lambda: newer)
    assert work([EAGER], tmp_path) == measure.DONE
    assert ids(tmp_path) == [EAGER.id, EAGER.id]


def test_errors_are_measured_again_only_when_asked(
    idle: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: Any) -> Record:
        return replace(fake_measure()(*arguments), measured={"error": "TypeError: a mistake"})

    monkeypatch.setattr(measure, "measure", fail)
    work([EAGER], tmp_path)
    monkeypatch.setattr(measure, "measure", fake_measure())
    work([EAGER], tmp_path)
    assert len(recorded(tmp_path)) == 1
    for _ in range(2):  # what has succeeded since is not asked again
        work([EAGER], tmp_path, again=True)
    assert [bool(record.failed) for record in recorded(tmp_path)] == [True, False]


def test_nothing_starts_after_the_time_is_up(
    idle: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "measure", fake_measure())
    assert work([EAGER, OTHER], tmp_path, until=0.0) == measure.DONE
    assert ids(tmp_path) == []
    assert capsys.readouterr().out == "some: 2 of 2 remain\n"


def test_answers_to_questions_lie_apart(idle: FakeCuda, tmp_path: Path) -> None:
    asked = Question(id="how-many", answer=lambda machine: {"gpus": machine.gpu_name})
    assert work([asked], tmp_path) == measure.DONE
    [record] = read(tmp_path / "questions" / "nvidia-fake-80gb.jsonl")
    assert (record.id, record.measured["answer"]) == ("how-many", {"gpus": "NVIDIA Fake 80GB"})
    assert ids(tmp_path) == []


def asked_for(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, list[str]]:
    """The suites and ids that a worker with these arguments is given."""
    given: dict[str, list[str]] = {}

    def work(suites: dict[str, list[measure.Asked]], *_: Any, **options: bool) -> int:
        given.update({name: [asked.id for asked in suite] for name, suite in suites.items()})
        return measure.DONE

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(measure, "work", work)
    measure.main(arguments)
    return given


def test_without_a_suite_all_are_measured_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    given = asked_for(monkeypatch)
    assert list(given) == ["questions", "alone", "pairs", "sizes", "holdout", "inference"]
    assert given == {name: [asked.id for asked in suite] for name, suite in measure.SUITES.items()}


def test_a_suite_can_be_chosen_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(asked_for(monkeypatch, "--suite", "holdout")) == ["holdout"]
    assert [len(ids) for ids in asked_for(monkeypatch, "--limit", "2").values()] == [2] * 6
    assert set(asked_for(monkeypatch, "--only", "rotary")["questions"]) == {"rotary"}


# --- the boundary: what torch and the driver are asked --------------------------------------------------------------


def test_history_keeps_sizes_and_order() -> None:
    events = [
        {"action": "segment_alloc", "addr": 0, "size": 2 * MIB},
        {"action": "alloc", "addr": 0, "size": 512},
        {"action": "alloc", "addr": 512, "size": 700},
        {"action": "free_requested", "addr": 0, "size": 512},
        {"action": "free_completed", "addr": 0, "size": 512},
        {"action": "alloc", "addr": 0, "size": 100},
        {"action": "free_completed", "addr": 512, "size": 700},
        {"action": "free_completed", "addr": 4096, "size": 700},  # allocated before
    ]
    compact = cuda.compact(events)
    assert compact == [512, 700, -2, 100, -2]  # the second latest is freed, twice
    assert json.loads(zlib.decompress(base64.b64decode(cuda.packed(compact)))) == compact


def test_the_allocators_events_are_taken_when_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    switched: list[str | None] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda enabled, **_: switched.append(enabled))
    snapshot = {"device_traces": [[{"action": "alloc", "addr": 1, "size": 9}]]}
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: snapshot)
    found: dict[str, Any] = {}
    with cuda.history(False, found):
        pass
    assert (found, switched) == ({}, [])
    with cuda.history(True, found):
        pass
    assert (found, switched) == ({"allocator_history": cuda.packed([9])}, ["all", None])


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "matmul"),
        ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_tn", "matmul"),
        ("void flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<cutlass::bfloat16_t>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>",
            "optimizer",
        ),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "elementwise"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", "copies"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void (anonymous namespace)::softmax_warp_forward<float>", "elementwise"),
        ("something_new", "other"),
    ],
)
def test_kernels_by_kind(kernel: str, kind: str) -> None:
    assert cuda.kernel_kind(kernel) == kind


def event(
    name: str, device: str, start: int = 0, seconds: float = 0.0, flops: int = 0, annotation: bool = False
) -> Any:
    """A profiler's event, as its C++ class has it."""
    length = round(seconds * 1e9)
    return SimpleNamespace(
        name=lambda: name,
        device_type=lambda: SimpleNamespace(name=device),
        start_thread_id=lambda: 1,
        start_ns=lambda: start,
        end_ns=lambda: start + length,
        duration_ns=lambda: length,
        flops=lambda: flops,
        is_user_annotation=lambda: annotation,
    )


def test_a_profile_sums_kernels_once_and_names_the_backend() -> None:
    events = [
        event("aten::mm", "CPU", seconds=9.0, flops=100),
        event("aten::mm", "CPU", seconds=8.0, flops=100, start=1),  # autocast's second call
        event("aten::mm", "CPU", seconds=1.0, flops=50, start=10**10),
        event("aten::mul", "CPU", flops=7),
        event("aten::_scaled_dot_product_flash_attention", "CPU"),
        event("nvjet_a", "CUDA", seconds=1.0),
        event("sm90_xmma_gemm", "CUDA", seconds=2.0),
        event("Memset (Device)", "CUDA", seconds=0.5),
        event("Optimizer.step#AdamW.step", "CUDA", seconds=4.0, annotation=True),
    ]
    assert cuda.summary(events) == {
        "kernel_seconds": {"matmul": 3.0, "copies": 0.5},
        "matmul_flops": 150,
        "sdpa_backends": ["flash"],
    }


def test_a_named_backend_is_the_only_one_that_may_run() -> None:
    q = torch.zeros(1, 1, 8, 8)
    with restricted_to("math"):
        assert torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    with restricted_to("auto"):
        assert torch.backends.cuda.flash_sdp_enabled()


def test_workspaces_are_what_the_first_products_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    # Before, after forward and after backward of three products in each of three types.
    readings = iter([100, 132, 140, *[140] * 6, 140, 141, 143, *[143] * 15])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(readings))
    monkeypatch.setattr(torch.backends.cuda, "cublas_workspace_size", lambda: 32)
    monkeypatch.setattr(torch.backends.cuda, "cublaslt_workspace_size", lambda: 1)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device, **options: zeros(*size, **options))
    assert cuda.workspaces() == {
        "forward_thread_bytes": 33,
        "autograd_thread_bytes": 10,
        "first_left_by": {
            "torch.float32, mm": {"forward_thread_bytes": 32, "autograd_thread_bytes": 8},
            "torch.bfloat16, mm": {"forward_thread_bytes": 1, "autograd_thread_bytes": 2},
        },
        "cublas_setting_bytes": 32,
        "cublaslt_setting_bytes": 1,
    }
    assert next(readings, None) is None


def test_a_worker_starts_by_seeing_its_context(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1000, 1000 + 500 * MIB + 2 * fake.allocated])
    monkeypatch.setattr(nvml, "used_bytes", lambda: next(readings))
    monkeypatch.setattr(nvml, "driver_version", lambda: "600.1")
    monkeypatch.setattr(nvml, "total_bytes", lambda: {"total_bytes": 80})
    monkeypatch.setattr(torch, "zeros", lambda *_, device: None)
    monkeypatch.setattr(cuda, "workspaces", lambda: WORKSPACES)
    properties = SimpleNamespace(name="NVIDIA Fake 80GB", major=9, minor=0, total_memory=79)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    found = machine.start()
    assert found.used_before_context_bytes == 1000
    assert found.facts["context_bytes"] == 500 * MIB
    assert found.facts["environment"] == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    assert found.versions["driver"] == "600.1"


def test_the_driver_is_asked_for_the_visible_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def memory_info(handle: str, version: int) -> Any:
        asked.append((handle, version))
        return SimpleNamespace(used=5, total=80, reserved=2)

    monkeypatch.setattr(nvml, "_get_nvml_device_index", lambda _: 3)
    monkeypatch.setattr(nvml.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(nvml.pynvml, "nvmlDeviceGetHandleByIndex", lambda index: f"gpu {index}")
    monkeypatch.setattr(nvml.pynvml, "nvmlDeviceGetMemoryInfo", memory_info)
    assert nvml.used_bytes() == 5
    assert nvml.total_bytes() == {"total_bytes": 80, "reserved_by_driver_bytes": 2}
    assert asked == [("gpu 3", nvml.pynvml.nvmlMemory_v2)] * 2


def test_phases_that_run_out_of_memory_are_not_counted(fake: FakeCuda) -> None:
    marks = cuda.PhaseCounters()
    with pytest.raises(torch.OutOfMemoryError), marks.during(Phase.FORWARD):
        raise torch.OutOfMemoryError
    assert marks.phases == {}


# --- without CUDA, without calc -------------------------------------------------------------------------------------


def test_without_cuda_it_says_so_and_exits_2() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-m", "validation", "measure"], capture_output=True, text=True, check=False, env=environment
    )
    assert (run.returncode, run.stderr) == (2, "measure needs a CUDA device, and torch sees none\n")


WITHOUT_CALC = """
import sys
sys.modules["calc"] = sys.modules["pydantic"] = None  # importing them fails
from validation import measure
from validation.cases import as_object, case
from validation.models import build_job
config = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
asked = case(config, 1, 8, recompute="full", adapter={"kind": "lora", "rank": 2})
job = build_job(as_object(asked.scenario), config, "cpu", "sdpa")
measure.training_step(job, lambda _: measure.nullcontext())
print(measure.parameter_counts(job.model)["trainable"])
"""


def test_measuring_needs_neither_calc_nor_pydantic() -> None:
    # LoRA's default targets are q_proj and v_proj, [16, 16] each: 2 * 2 * (16 + 16).
    assert subprocess.check_output([sys.executable, "-W", "ignore", "-c", WITHOUT_CALC], text=True) == "128\n"


@pytest.mark.gpu
def test_a_real_step_is_measured() -> None:
    found = measure.measure(case("gpt2", 1, 128, attention="flash", history=True), machine.start(), FRESH).measured
    assert found["memory"]["peak_allocated_bytes"] > found["memory"]["saved_activation_bytes"] > 0
    assert found["profile"]["sdpa_backends"] == ["flash"]
    assert found["allocator_history"]
