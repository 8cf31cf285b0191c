"""The formulas against every record."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from calc import Scenario, estimate
from validation import regress as regress_module
from validation.compare import Comparison, bound, compare, leaves
from validation.records import Kind, Record, read_all
from validation.regress import FAILED, PASSED, compared, regress
from validation.replay import Replayed

SCENARIO = {"model": "gpt2", "micro_batch_size": 2, "sequence_length": 64, "attention": "eager"}
ANSWER = estimate(Scenario(**SCENARIO))


def record(kind: Kind = "trace", scenario: Mapping[str, Any] = SCENARIO, **measured: Any) -> Record:
    return Record(kind=kind, id="asked", scenario=dict(scenario), holdout=False, measured=measured)


def peak(kind: Kind, factor: float, **more: int) -> Record:
    measured = round(ANSWER.memory.peak_allocated_bytes * factor) + sum(more.values())
    return record(kind, memory={"peak_allocated_bytes": measured, **more})


def test_every_record_is_within_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert regress(read_all()) == PASSED, capsys.readouterr().out


def test_traces_of_every_family_are_compared_in_every_quantity() -> None:
    comparisons, refusals = compared(read_all())
    traced = [each for each in comparisons if each.record.kind == "trace"]
    assert refusals == []
    assert {each.answer.architecture.model_type for each in traced} >= {"gpt2", "llama", "mistral", "qwen2", "qwen3"}
    recorded = {name for each in read_all() for name, _ in leaves(each.measured) if each.kind == "trace"}
    assert {each.quantity for each in traced} == recorded


def test_regress_loads_no_torch() -> None:
    script = "import sys, validation.regress, validation.report; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"


@pytest.mark.parametrize(
    ("kind", "factor", "status"),
    [
        ("trace", 1.009, PASSED),
        ("trace", 1.011, FAILED),
        ("trace", 0.989, FAILED),
        ("measurement", 1.019, PASSED),
        ("measurement", 1.021, FAILED),
    ],
)
def test_a_peak_may_be_off_by_its_bound(kind: Kind, factor: float, status: int) -> None:
    # The bound is on (estimated − recorded) / recorded.
    assert regress([peak(kind, factor)]) == status


def test_one_flop_too_many_fails(capsys: pytest.CaptureFixture[str]) -> None:
    total = ANSWER.flops.total
    assert regress([record(flops={"total": total})]) == PASSED
    assert regress([record(flops={"total": total + 1})]) == FAILED
    complaint = capsys.readouterr().out.splitlines()[-1]
    assert complaint.startswith("BEYOND   trace asked: flops.total")
    assert f"{total:,}" in complaint


def test_one_saved_byte_too_few_fails() -> None:
    saved = ANSWER.memory.saved_activation_bytes
    assert regress([record(memory={"saved_activation_bytes": saved - 1})]) == FAILED


def test_what_the_formulas_refuse_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert regress([record(scenario=SCENARIO | {"attention": "cudnn"})]) == FAILED
    assert "REFUSED  trace asked: attention" in capsys.readouterr().out


def test_torchs_allocated_bytes_include_the_workspaces() -> None:
    measured = peak("measurement", 1.0, library_workspace_bytes=64 * 2**20)
    assert {each.quantity: each.relative_error for each in compare(measured)} == {"memory.peak_allocated_bytes": 0.0}


def test_a_record_of_an_out_of_memory_is_counted_and_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert regress([record("measurement", out_of_memory={"peak_allocated_bytes": 1})]) == PASSED
    assert "0 measurements compared, 1 that did not run" in capsys.readouterr().out


def test_a_replayed_history_that_is_not_exact_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = peak("measurement", 1.0)
    for simulated, status in ((2**20, PASSED), (2**21, FAILED)):
        counter = Replayed(record=passing, quantity="peak_reserved_bytes", simulated=simulated, measured=2**20)
        monkeypatch.setattr(regress_module, "replayed", lambda _, counter=counter: [counter])
        assert regress([passing]) == status
        printed = capsys.readouterr().out
        assert f"1 allocator histories replayed, {int(status == PASSED)} of 1 counters exact" in printed
        assert (f"DIFFERS  {counter}" in printed) is (status == FAILED)


def test_zero_against_something_is_infinitely_off() -> None:
    comparison = Comparison(record=record(), answer=ANSWER, quantity="flops.recompute", estimated=0, measured=0)
    assert comparison.relative_error == 0
    assert replace(comparison, estimated=1).relative_error == float("inf")


def test_a_quantity_without_a_stated_bound_is_an_error() -> None:
    assert bound("trace", "memory.phases.forward.peak_allocated_bytes") == 0.01
    with pytest.raises(LookupError, match="memory\\.headroom_bytes"):
        bound("trace", "memory.headroom_bytes")


def test_numbers_are_found_by_their_dotted_names() -> None:
    nested = {"a": {"b": 1, "c": "text", "d": True}, "phases": [{"name": "forward", "peak": 2}, 3], "e": None}
    assert dict(leaves(nested)) == {"a.b": 1, "phases.forward.peak": 2}
