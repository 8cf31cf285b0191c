"""The accuracy page, its short form in the README, and the files of the catalogue."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from calc import Scenario, estimate
from calc.accuracy import PEAKS
from calc.scenario import Attention
from validation import report
from validation.compare import Comparison
from validation.records import Kind, Record, read_all

ANSWER = estimate(Scenario(model="gpt2", micro_batch_size=1, sequence_length=8, attention=Attention.EAGER))


def comparison(
    error: float, kind: Kind = "trace", holdout: bool = False, peak: str = "allocated", number: int = 0
) -> Comparison:
    record = Record(kind=kind, id=f"{kind} {number}", scenario={}, holdout=holdout, measured={})
    estimated = round(10_000 * (1 + error))
    return Comparison(record=record, answer=ANSWER, quantity=PEAKS[peak], estimated=estimated, measured=10_000)


def page(*comparisons: Comparison) -> str:
    return report.page([each.record for each in comparisons], comparisons)


def readme_table(*comparisons: Comparison) -> str:
    return report.readme_table([each.record for each in comparisons], comparisons)


def cells_of(text: str, label: str) -> Sequence[str]:
    """The cells of the table's line `label`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


@pytest.fixture(scope="module")
def documents() -> dict[Path, str]:
    return report.documents(read_all())


@pytest.mark.parametrize(
    "path", [report.PAGE, report.README, report.NEAREST, report.VERDICT, report.POINTS], ids=lambda path: path.name
)
def test_generated_files_are_current(path: Path, documents: dict[Path, str]) -> None:
    assert path.read_text(encoding="utf-8") == documents[path], "run: python -m validation report"


def test_the_readme_has_the_table() -> None:
    assert report.README_TABLE.search(report.README.read_text(encoding="utf-8"))


def test_the_table_shows_what_the_statistics_say() -> None:
    text = page(*(comparison(error, number=number) for number, error in enumerate([0.0, -0.01, 0.02, 0.04])))
    assert cells_of(text, "allocated") == ["4", "1", "1.500%", "3.400%", "4.000%", "+1.250%", "1"]
    assert cells_of(text, "family gpt2") == cells_of(text, "allocated")


def test_traces_measurements_and_held_out_cases_are_apart() -> None:
    measured = comparison(0.03, kind="measurement")
    text = page(comparison(0.01), comparison(0.02, holdout=True, number=1), measured)
    measurements, traces = text.split("## Against traces")
    assert "1 measured case, 0 of them held out." in measurements
    assert cells_of(measurements, "allocated")[2] == "3.000%"
    assert "2 traced cases, 1 of them held out." in traces
    assert cells_of(traces, "allocated")[:3] == ["1", "0", "1.000%"]
    assert cells_of(traces, "allocated, held out")[:3] == ["1", "0", "2.000%"]
    assert cells_of(traces, "family gpt2")[:3] == ["1", "0", "1.000%"]


def test_the_three_peaks_have_lines_and_knobs_of_their_own() -> None:
    errors = {"allocated": 0.01, "reserved": -0.02, "device": 0.03}
    text = page(*(comparison(error, kind="measurement", peak=peak) for peak, error in errors.items()))
    for peak, error in errors.items():
        assert cells_of(text, peak)[4:6] == [f"{abs(error):.3%}", f"{error:+.3%}"]
        of_peak = text.split(f"### Peak, {peak}, by family and by knob")[1]
        assert cells_of(of_peak, "family gpt2")[4] == f"{abs(error):.3%}"


def test_what_is_exact_is_said_in_one_line() -> None:
    total = replace(comparison(0.0), quantity="flops.total")
    text = page(comparison(0.0), total)
    assert "All 2 recorded quantities" in text
    assert "0.000%" not in text
    assert "| family | gpt2 (1) |" in text
    off = page(comparison(0.01), total)
    assert "1 of 2 recorded quantities" in off
    assert cells_of(off, f"`{PEAKS['allocated']}`")[4] == "1.000%"


def test_no_measurement_is_said_as_such() -> None:
    assert "0 measured cases." in page(comparison(0.01))
    assert "Against measurements on a GPU: 0 measured cases." in readme_table(comparison(0.01))


def test_what_did_not_run_is_said() -> None:
    ran = comparison(0.01, kind="measurement")
    full = replace(ran.record, measured={"out_of_memory": {}})
    text = report.page([ran.record, full], [ran])
    assert "1 measured case, 0 of them held out. 1 more did not run." in text


def test_every_record_has_one_line_in_the_catalogue(documents: dict[Path, str]) -> None:
    text = documents[report.POINTS]
    assert len(text.splitlines()) == len(json.loads(text)) + 2
    assert len(json.loads(text)) == sum(not record.failed for record in read_all())
