"""Measuring, with fakes where it meets the driver (NVML) and torch's CUDA statistics; the steps are real, on a CPU."""

import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch

from calc import Scenario, estimate
from tests.validation.fake_cuda import ACCUMULATED, EAGER, FRESH, MACHINE, MIB, TINY, WORKSPACES, FakeCuda
from validation import cuda, machine, measure
from validation.cases import Case, as_object, case
from validation.compare import compare
from validation.generation_cases import generating
from validation.models import build_job
from validation.step import Phase, forward


def measured(asked: Case) -> dict[str, Any]:
    found = measure.measure(asked, MACHINE, FRESH).measured
    assert "error" not in found, found["error"]
    return found


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
    tensors = [*job.model.parameters(), *job.model.buffers(), *averaged, job.inputs]
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
    assert 1 < len(job.inputs.unique()) <= 16
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
