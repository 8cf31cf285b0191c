"""A worker of many cases: its records, its end after an out-of-memory, going on in a new process."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.validation.fake_cuda import ACCUMULATED, EAGER, MACHINE, OTHER, FakeCuda
from validation import measure
from validation.cases import Case
from validation.machine import Machine
from validation.questions import Question
from validation.records import Record, read
from validation.supervisor import FOREVER, NEW_PROCESS


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
