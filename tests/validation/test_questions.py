"""The probes, run on a CPU: real where types and names are asked, traced where bytes are."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from calc.scenario import Attention
from validation import cuda, questions
from validation.as_on_cuda import as_on_cuda, only_reference_counting
from validation.cases import case
from validation.machine import Machine
from validation.questions import QUESTIONS, bytes_of
from validation.recorder import StepRecorder
from validation.step import Phase

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "validation.md"
MACHINE: Any = None
"""Most probes do not look at it."""
SMALL = questions.WIDE_VOCABULARY | {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    nothing = {"requested_bytes.all.current": 0, "requested_bytes.all.peak": 0}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: nothing)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)


class ForwardAndBackward(StepRecorder):
    """Nobody says which phase it is: the engine, which adds in place, turns gradients off."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.phase = Phase.FORWARD if torch.is_grad_enabled() else Phase.BACKWARD
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.cuda's counters are the tracer's."""
    recorder = ForwardAndBackward()

    def reset() -> None:
        recorder.peak_bytes = recorder.live_bytes

    def statistics() -> dict[str, int]:
        return {"requested_bytes.all.current": recorder.live_bytes, "requested_bytes.all.peak": recorder.peak_bytes}

    monkeypatch.setattr(torch.cuda, "memory_stats", statistics)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_cuda(Attention.MATH), only_reference_counting(), recorder:
        yield


def test_bytes_are_those_above_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(monkeypatch):
        kept = torch.zeros(1024)
        result, seen = bytes_of(lambda: (torch.zeros(256) + torch.zeros(256)) * 2)
    assert seen == {"peak_bytes": 3 * 1024, "end_bytes": 1024}
    assert (kept.nbytes, result.nbytes) == (4096, 1024)


def test_rotary_positions_take_three_times_their_output_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(monkeypatch):
        found = questions.rotary(MACHINE)
    same, wider = found["bfloat16 with bfloat16 positions"], found["bfloat16 with float32 positions"]
    q, k = same["q_bytes"], same["k_bytes"]
    assert (q, k) == (2 * 2048 * 32 * 128, 2 * 2048 * 8 * 128)
    # q·cos, the turned half·sin and their sum.
    assert same["forward"] == {"peak_bytes": 3 * q, "end_bytes": q + k}
    assert wider["forward"] == {"peak_bytes": 6 * q, "end_bytes": 2 * (q + k)}
    assert same["backward"]["end_bytes"] == q + k


@pytest.mark.parametrize(
    ("precision", "tied", "embeddings"),
    [
        ("fp32", True, 2),
        ("fp32", False, 0),
        ("bf16", True, 2),
        ("bf16", False, 0),
        ("bf16-autocast", True, 1),
        ("bf16-autocast", False, 0),
    ],
)
def test_a_tied_embeddings_gradients_meet_in_a_third_unless_autocast_has_cast_one(
    monkeypatch: pytest.MonkeyPatch, precision: str, tied: bool, embeddings: int
) -> None:
    asked = case(SMALL | {"tie_word_embeddings": tied}, 1, 8, attention="eager", precision=precision, optimizer="sgd")
    with traced(monkeypatch):
        job = questions.job_of(asked)
        gradient = next(job.model.parameters()).nbytes
        seen = questions.backward_bytes(job)
    assert seen["peak_over_end_bytes"] / gradient == pytest.approx(embeddings, abs=0.1)


def test_the_engines_additions_are_told_from_the_nodes() -> None:
    asked = case(SMALL | {"tie_word_embeddings": True}, 1, 8, attention="eager", precision="fp32", optimizer="sgd")
    found = questions.additions(questions.job_of(asked))
    assert found["into a third"]["[50000, 64]"] == 1
    assert "[50000, 64]" not in found["in place"]
    assert found["in place"]["[1, 8, 64]"] > 0  # the residual's


def test_an_addition_inside_a_node_is_not_the_engines() -> None:
    def event(name: str, start: int, end: int) -> Any:
        return SimpleNamespace(name=lambda: name, start_ns=lambda: start, end_ns=lambda: end, start_thread_id=lambda: 1)

    engine, node = "autograd::engine::evaluate_function: MulBackward0", "MulBackward0"
    events = [event(engine, 0, 9), event(node, 1, 5), event("aten::add", 2, 3), event("aten::add_", 6, 7)]
    events += [event("aten::add_", 10, 11)]
    assert list(questions.engine_additions(events)) == [events[3]]


def test_each_precision_is_asked_with_and_without_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "WIDE_VOCABULARY", SMALL | {"vocab_size": 128})
    found = questions.tied_embedding(MACHINE)
    assert list(found) == [f"{p}, {t}" for p in ("fp32", "bf16", "bf16-autocast") for t in ("tied", "untied")]
    assert found["bf16, tied"]["embedding_gradient_bytes"] == 2 * 128 * 64
    assert all(
        set(each) == {"embedding_gradient_bytes", "first_micro_batch", "second_micro_batch", "additions"}
        for each in found.values()
    )


def test_layer_norms_statistics_have_the_type_the_kernel_gave_them() -> None:
    found = questions.layer_norm_statistics(MACHINE)
    assert found["float32"] == {"mean": "float32", "rstd": "float32"}
    assert found["bfloat16"] == {"mean": "bfloat16", "rstd": "bfloat16"}  # on a CPU


def test_attention_kernels_are_asked_one_by_one_and_may_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "HEAD_DIMS", (16,))
    monkeypatch.setattr(questions, "WORKSPACE_SHAPES", [(1, 64, 4, 16, 2)])
    found = questions.attention_kernels(MACHINE)
    assert found["chosen"]["bfloat16, head size 16, causal, dropout 0.1"] == "math"
    assert len(found["chosen"]) == 3 * 4
    assert set(found["bytes"]["math, [B, S, N, D] = [1, 64, 4, 16], 2 key/value heads"]) > {"forward", "backward"}
    assert "refused" in found["bytes"]["cudnn, [B, S, N, D] = [1, 64, 4, 16], 2 key/value heads"]


def test_attentions_bytes_leave_its_inputs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(monkeypatch):
        found = questions.attention_bytes("math", (1, 64, 4, 16), 4)
    out = 2 * 64 * 4 * 16
    assert found["out_bytes"] == out
    assert found["backward"]["end_bytes"] == 3 * out  # the gradients of q, k and v
    assert found["forward"]["peak_bytes"] > found["forward"]["end_bytes"] > out


class FakeMachine(Machine):
    """A context that is 10 bytes larger whenever it is looked at."""

    def idle(self) -> dict[str, int]:
        self.facts["seen"] += 1
        return {"allocated_bytes": 70, "reserved_bytes": 80, "context_bytes": 10 * self.facts["seen"]}


def fake_machine() -> FakeMachine:
    return FakeMachine(
        gpu_name="fake",
        versions={},
        used_before_context_bytes=0,
        workspaces={"forward_thread_bytes": 32, "autograd_thread_bytes": 32},
        facts={"context_bytes": 7, "seen": 0},
    )


@pytest.fixture
def one_step(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The warm steps are one, of a tiny model; gives the ones that ran."""
    tiny = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    monkeypatch.setattr(questions, "WARM_STEPS", [case(tiny, 1, 8, attention="eager")])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (900, 1000))
    monkeypatch.setattr(cuda, "profiled", lambda step: step())
    ran: list[Any] = []
    step = questions.training_step
    monkeypatch.setattr(questions, "training_step", lambda job, during: (ran.append(None), step(job, during)))
    return ran


def test_the_context_is_seen_bare_and_after_each_thing_that_lets_it_grow(one_step: list[Any]) -> None:
    found = questions.context(fake_machine())
    assert found["bare_bytes"] == 7
    assert [size["after"] for size in found["sizes"]] == ["start", questions.WARM_STEPS[0].id, "profiler"]
    assert [size["context_bytes"] for size in found["sizes"]] == [10, 20, 30]
    assert {size["device_used_less_reserved_bytes"] for size in found["sizes"]} == {20}
    assert len(one_step) == 1


def test_workspaces_that_only_steps_make_are_seen(one_step: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 70)
    found = questions.cublas_workspaces(fake_machine())
    assert found == {"forward_thread_bytes": 32, "autograd_thread_bytes": 32, "left_by_steps_bytes": 70}
    assert len(one_step) == 1


def test_the_context_is_asked_first() -> None:
    assert [question.id for question in QUESTIONS] == [
        "context",
        "cublas-workspaces",
        "tied-embedding",
        "rotary",
        "attention-kernels",
        "layer-norm",
    ]


def test_the_documentation_has_a_line_for_each_question() -> None:
    documented = re.findall(r"^\| `([a-z-]+)` \| .*\?", DOCUMENTATION.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(question.id for question in QUESTIONS)
