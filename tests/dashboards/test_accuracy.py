"""The pages of recorded cases: from the generated files, and from a measured case made up here."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

import calc
from api.app import create_app
from api.settings import Settings
from calc.accuracy import PEAKS, read_points, read_published, read_verdict
from dashboards import accuracy
from dashboards.words import WORDS, Language

ENGLISH = WORDS[Language.ENGLISH]


@pytest.fixture(scope="module")
def client():
    with TestClient(create_app(Settings())) as client:
        yield client


def errors(cases: int, exact: int, largest: float) -> dict[str, Any]:
    return {
        "cases": cases,
        "exact": exact,
        "median_relative_error": largest / 2,
        "percentile_90_relative_error": largest,
        "max_relative_error": largest,
        "mean_signed_relative_error": -largest,
        "underestimates": cases - exact,
    }


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two measured cases with all three peaks, one of them a point; no trace."""
    of_all = errors(2, 0, 0.0125)
    quantity = {"bound": 0.05, "all": of_all, "tuning": of_all, "by_knob": {"family": {"gpt2": of_all}}}
    verdict = {
        "counts": {"measurement": {"cases": 2, "holdout": 0}, "trace": {"cases": 0, "holdout": 0}},
        "statistics": {"measurement": dict.fromkeys(PEAKS.values(), quantity), "trace": {}},
    }
    point = {
        "kind": "measurement",
        "id": "gpt2?micro_batch_size=2&adapter.kind=lora",
        "holdout": False,
        "scenario": {"model": "gpt2", "micro_batch_size": 2, "adapter": {"kind": "lora"}, "gpu": "h200-sxm-141gb"},
        "gpu_name": "NVIDIA <H200>",
        "versions": {"torch": "2.13.0", "driver": None},
        "commit": "",
        "recorded_at": "2026-01-02T03:04:05+00:00",
        "quantities": {"flops.recompute": [0, 7]} | {name: [80 * 2**30, 79 * 2**30] for name in PEAKS.values()},
    }
    monkeypatch.setattr(accuracy, "read_verdict", lambda: verdict)
    monkeypatch.setattr(accuracy, "read_points", lambda: {"abcd": point})


def test_the_headline_counts_what_is_recorded(client):
    counts, statistics = read_verdict()["counts"], read_verdict()["statistics"]
    for source, words in (("trace", "traced steps"), ("measurement", "measured on a GPU")):
        cases = counts[source]["cases"]
        said = accuracy.sentence(source, ENGLISH)
        assert said.startswith(f"{cases} ")
        assert words in said
        if cases:
            is_exact = statistics[source][PEAKS["allocated"]]["all"]["exact"] == cases
            assert ("all equal to the byte" in said) is is_exact
        assert said in client.get("/accuracy").text


def test_the_headline_counts_what_others_published(client):
    tables = [table for table in read_published().values() if table["compared_with"] != "simulation"]
    largest = max(table["max_relative_error"] for table in tables)
    figures = sum(table["figures"] for table in tables)
    said = f"{figures} figures of allocated bytes that others measured on their GPUs: at most"
    assert f"{said} {100 * largest:.2f} % apart." in client.get("/accuracy").text


@pytest.mark.parametrize(("error", "text"), [(0.0, "0"), (1e-9, "< 0.01 %"), (0.00005, "0.01 %"), (0.0125, "1.25 %")])
def test_only_what_is_zero_is_shown_as_zero(error, text):
    assert accuracy.percent(error) == text


def test_every_record_is_a_mark_a_line_and_a_page(client):
    html = client.get("/accuracy").text
    for key, point in read_points().items():
        peaks = len(set(PEAKS.values()) & set(point["quantities"]))
        # In the figure, in its strip of errors, in the table.
        assert html.count(f'href="/accuracy/{key}"') == 3 * peaks, key
    key = next(reversed(read_points()))
    page = client.get(f"/accuracy/{key}")
    assert page.status_code == 200
    for recorded, estimated in read_points()[key]["quantities"].values():
        assert f"{recorded:,}" in page.text
        assert f"{estimated:,}" in page.text


@pytest.mark.parametrize("key", list(read_points())[::7])
def test_a_record_opens_in_fit_with_its_scenario(client, key):
    record = accuracy.record_view(key, ENGLISH)
    assert record is not None
    answer = client.get(f"/v1/estimate?{record['query']}").json()
    asked = calc.estimate(calc.Scenario(**read_points()[key]["scenario"])).to_dict()
    assert answer["scenario"] == asked["scenario"]
    assert client.get(f"/?{record['query']}").status_code == 200
    assert f"/?{record['query']}".replace("&", "&amp;") in client.get(f"/accuracy/{key}").text


def test_no_record_is_a_page_too(client):
    page = client.get("/accuracy/<b>")
    assert page.status_code == 404
    assert "There is no record &lt;b&gt;" in page.text


def test_links_keep_the_question_and_the_language(client):
    html = client.get("/accuracy?model=gpt2&lang=zh").text
    assert "全部逐字节相等" in html or "误差中位数" in html
    key = next(iter(read_points()))
    assert f'href="/accuracy/{key}?model=gpt2&amp;lang=zh"' in html
    assert 'href="/?model=gpt2&amp;lang=zh"' in client.get(f"/accuracy/{key}?model=gpt2&lang=zh").text


@pytest.mark.usefixtures("measured")
def test_measured_cases_are_said_first_and_drawn_for_each_peak(client):
    view = accuracy.accuracy_view(ENGLISH)
    assert view["headline"].startswith(
        "2 steps measured on a GPU: allocated bytes off by 0.62 % in the median, 1.25 % at most. 0 traced steps. "
    )
    assert [section["peak"] for section in view["sections"]] == ["allocated", "reserved", "device"]
    for section in view["sections"]:
        (column,) = section["columns"]
        assert (column["kind"], column["cases"], column["largest"]) == ("measurement", 2, "1.25 %")
        assert (column["signed_mean"], column["bound"], column["too_low"]) == ("−1.25 %", "± 5 %", 2)
        assert section["knobs"][0]["rows"][0]["value"] == "gpt2"
        (record,) = section["records"].values()
        assert record["text"] == (
            "gpt2\nmicro_batch_size 2, adapter.kind lora\nrecorded 80.0 GiB, estimated 79.0 GiB, −1.25 %"
        )
    html = client.get("/accuracy").text
    assert html.count('class="mark measurement"') == 3 * 3
    assert ENGLISH["peak_none"] not in html


@pytest.mark.usefixtures("measured")
def test_a_measured_record_says_where_it_comes_from(client):
    html = client.get("/accuracy/abcd").text
    for said in ("NVIDIA &lt;H200&gt;", "2026-01-02 03:04:05 UTC", "2.13.0", "gpu=h200-sxm-141gb", "+7"):
        assert said in html
    assert "driver" not in html
    assert ENGLISH["recorded_by.trace"] not in html


def test_a_peak_that_no_record_has_says_so(client):
    html = client.get("/accuracy").text
    recorded = {quantity for point in read_points().values() for quantity in point["quantities"]}
    assert html.count(ENGLISH["peak_none"]) == len(set(PEAKS.values()) - recorded)


@pytest.mark.parametrize(
    ("recorded", "estimated", "said"),
    [(0, 0, "equal"), (5, 5, "equal"), (0, 7, "+7"), (1000, 1001, "+0.10 %"), (10**9, 10**9 - 1, "−0.00 %")],
)
def test_only_what_is_exact_is_called_equal(recorded, estimated, said):
    assert accuracy.difference(recorded, estimated, ENGLISH) == said
