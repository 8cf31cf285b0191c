"""The accuracy table, its copies, and the estimates' `accuracy`."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from calc import Scenario, accuracy, estimate
from calc.plan import Plan
from calc.scenario import Attention, Optimizer
from validation import report
from validation.compare import Comparison
from validation.records import Kind, Record

ANSWER = estimate(Scenario(model="gpt2", micro_batch_size=1, sequence_length=8, attention=Attention.EAGER))


def comparison(error: float, kind: Kind = "trace", holdout: bool = False, number: int = 0) -> Comparison:
    scenario = ANSWER.scenario.model_dump(mode="json")
    record = Record(kind=kind, id=f"{kind} {number}", scenario=scenario, holdout=holdout, measured={})
    return Comparison(
        record=record, answer=ANSWER, quantity=report.PEAK, estimated=round(10_000 * (1 + error)), measured=10_000
    )


def comparisons(errors: Sequence[float], kind: Kind = "trace") -> list[Comparison]:
    return [comparison(error, kind, number=number) for number, error in enumerate(errors)]


@pytest.mark.parametrize("path", [report.PAGE, report.README, report.CATALOGUE], ids=lambda path: path.name)
def test_generated_files_are_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == report.documents()[path], "run: python -m validation report"


def test_the_readme_has_the_table() -> None:
    assert report.README_TABLE.search(report.README.read_text(encoding="utf-8"))


def test_statistics() -> None:
    assert report.statistics(comparisons([0.0, -0.01, 0.02, 0.04])) == {
        "cases": 4,
        "exact": 1,
        "median": pytest.approx(0.015),
        "90th percentile": pytest.approx(0.034),  # 0.7 of the way from 0.02 to 0.04
        "largest": pytest.approx(0.04),
        "signed mean": pytest.approx(0.0125),
        "too low": 0.25,
    }


def test_one_case_has_statistics_too() -> None:
    assert report.statistics(comparisons([-0.01]))["90th percentile"] == pytest.approx(0.01)


def test_traces_measurements_and_held_out_cases_are_apart() -> None:
    page = report.page(
        [comparison(0.01), comparison(0.02, holdout=True, number=1), comparison(0.03, kind="measurement")]
    )
    traces, measurements = page.split("## Against measurements")
    tuned, held_out = traces.split("### Held out")
    assert "2 traced cases, 1 of them held out" in traces
    assert "1.000%" in tuned
    assert "2.000%" not in tuned
    assert "2.000%" in held_out.split("by family")[0]
    assert "1 measured case, 0 of them held out" in measurements
    assert "3.000%" in measurements


def test_no_measurement_is_said_as_such() -> None:
    assert "0 measured cases." in report.page([comparison(0.01)])
    assert "Against measurements on a GPU: 0 measured cases." in report.readme_table([comparison(0.01)])


def test_each_knob_has_its_lines() -> None:
    lines = report.by_knob(comparisons([0.01, 0.02]))
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "family gpt2",
        "precision bf16-autocast",
        "attention eager",
        "recompute none",
        "optimizer adamw",
        "adapter none",
        "dropout on",
        "accumulation 1",
    ]


def test_what_report_writes_is_what_the_estimate_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "read_accuracy", lambda: report.nearest(comparisons([-0.01, 0.03])))
    found = accuracy.nearest_accuracy("gpt2", Plan(attention=Attention.EAGER, optimizer=Optimizer.SGD))
    assert found == {
        "compared_with": "trace",
        "alike": "gpt2, transformers, bf16-autocast, eager",
        "cases": 2,
        "median_relative_error": pytest.approx(0.02),
        "max_relative_error": pytest.approx(0.03),
        "underestimates": 1,
    }
