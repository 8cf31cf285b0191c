"""Records: written once, read back, never half."""

import subprocess
from pathlib import Path

import pytest

from validation import records
from validation.cases import case_id
from validation.records import Record, read, read_all
from validation.suites import TRACES

RECORDED = read_all()


def record(number: int) -> Record:
    return Record(kind="trace", id=f"case {number}", scenario={"model": "gpt2"}, holdout=False, measured={"n": number})


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = [record(1), record(2)]
    for each in written:
        each.append_to(tmp_path / "new" / "a.jsonl")
    assert list(read(tmp_path / "new" / "a.jsonl")) == written
    assert read_all(tmp_path / "new") == written


def test_a_line_that_a_killed_run_left_unfinished_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record(1).append_to(path)
    record(2).append_to(path)
    path.write_text(path.read_text()[:-20])
    assert [each.id for each in read(path)] == ["case 1"]
    record(3).append_to(path)
    assert [each.id for each in read(path)] == ["case 1", "case 3"]


def test_a_record_says_with_what_it_was_made() -> None:
    made = record(1)
    assert set(made.versions) == {"torch", "transformers", "peft"}
    assert made.recorded_at.endswith("+00:00")


def test_without_git_the_commit_is_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    assert records.commit() == ""
    monkeypatch.setattr(records.shutil, "which", lambda _: None)
    assert records.commit() == ""


def test_the_commit_is_gits(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout="abc\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(records.shutil, "which", lambda _: "/usr/bin/git")
    assert records.commit() == "abc"


def test_the_suite_of_traces_is_recorded() -> None:
    traced = {each.id: each for each in RECORDED if each.kind == "trace"}
    assert [traced[each.id].scenario for each in TRACES] == [each.scenario for each in TRACES]
    assert [traced[each.id].holdout for each in TRACES] == [each.holdout for each in TRACES]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda each: each.id)
def test_every_record_is_named_after_its_scenario(recorded: Record) -> None:
    assert recorded.id == case_id(recorded.scenario)
    assert (recorded.gpu_name is None) == (recorded.kind == "trace")
