"""Traces as records, and the command line."""

import json
from pathlib import Path

import pytest

from calc import Scenario
from validation import tracing
from validation.__main__ import main
from validation.cases import Case, case
from validation.records import Record, read

TINY = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}


def test_what_a_scenario_leaves_open_is_written_down() -> None:
    found = tracing.case_of(Scenario(model="GPT2", adapter={}, micro_batch_size=2))  # pyright: ignore[reportArgumentType]
    assert found.id == "gpt2?micro_batch_size=2&sequence_length=1024&attention=flash&adapter.kind=lora"
    assert found.scenario["model"] == "gpt2"


def test_a_config_from_a_file_is_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert tracing.case_of(Scenario(model=str(tmp_path))).scenario["model"] == TINY


def test_a_suite_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def record_of(asked: Case) -> Record:
        return Record(kind="trace", id=asked.id, scenario=asked.scenario, holdout=asked.holdout, measured={})

    monkeypatch.setattr(tracing, "TRACES", tmp_path / "traces.jsonl")
    monkeypatch.setattr(tracing, "record_of", record_of)
    suite = [case(TINY, 1, 8), case(TINY, 2, 8, holdout=True)]
    tracing.record_suite(suite[:1])
    tracing.record_suite(suite)
    recorded = list(read(tmp_path / "traces.jsonl"))
    assert [(each.id, each.holdout) for each in recorded] == [(each.id, each.holdout) for each in suite]


def test_trace_prints_the_estimates_names_and_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracing, "TRACES", tmp_path / "traces.jsonl")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    flags = ["--micro-batch-size", "1", "--attention", "eager", "--precision", "bf16"]
    assert main(["trace", str(tmp_path), *flags, "--record"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"parameters", "memory", "flops"}
    [recorded] = read(tmp_path / "traces.jsonl")
    assert recorded.measured == printed
    assert recorded.scenario["sequence_length"] == 16


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["no-such-model"], "model = 'no-such-model'"),
        (["gpt2", "--precision", "zero-16"], "precision = 'zero-16'"),
        (["gpt2", "--micro-batch-size", "0"], "micro_batch_size = 0"),
        ([], "model"),
    ],
)
def test_what_cannot_be_traced_is_one_line_and_status_2(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"trace: {said}")


@pytest.mark.parametrize("arguments", [[], ["guess"], ["regress", "--all"]])
def test_unknown_commands_and_flags_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2


def test_regress_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["regress"]) == 0
    assert "traces compared" in capsys.readouterr().out
