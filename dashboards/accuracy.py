"""What the pages `/accuracy` and `/accuracy/<key>` show of recorded cases; `validation report` wrote the numbers."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any
from urllib.parse import parse_qsl, urlencode

import calc
from calc.accuracy import PEAKS, SOURCES, read_points, read_published, read_verdict
from calc.units import format_gib

from .address import query_pairs
from .scatter import Mark, scatter

Words = Mapping[str, str]

KNOB_WORDS = {"family": "family", "accumulation": "gradient_accumulation_steps"}
"""The words for knobs that are called by no field."""


def accuracy_view(words: Words) -> dict[str, Any]:
    """The verdict in words, each peak with its figure, statistics and records, and what others published."""
    sentences = [sentence(source, words) for source in _sources_that_say_most_first()]
    return {
        "headline": " ".join([*sentences, of_others(words)]),
        "sections": [section(peak, quantity, words) for peak, quantity in PEAKS.items()],
        "published": [published_row(table) for table in read_published().values()],
    }


def of_others(words: Words) -> str:
    """How far published measurements of allocated bytes are, in words."""
    tables = [table for table in read_published().values() if table["compared_with"] != "simulation"]
    figures, largest = sum(table["figures"] for table in tables), max(table["max_relative_error"] for table in tables)
    return words["published.headline"].format(figures=figures, largest=percent(largest))


def published_row(table: dict[str, Any]) -> dict[str, Any]:
    """A table of published measurements; errors in percent."""
    errors = {name: percent(table[f"{name}_relative_error"]) for name in ("median", "max")}
    versions = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
    return table | errors | {"versions": versions}


def sentence(source: str, words: Words) -> str:
    """How many cases there are and how far off the allocated bytes are in them."""
    cases = read_verdict()["counts"][source]["cases"]
    if not cases:
        return words[f"verdict.{source}.none"]
    errors = read_verdict()["statistics"][source][PEAKS["allocated"]]["all"]
    if errors["exact"] == cases:
        return words[f"verdict.{source}.exact"].format(cases=cases)
    median, largest = (percent(errors[f"{which}_relative_error"]) for which in ("median", "max"))
    return words[f"verdict.{source}.off"].format(cases=cases, median=median, largest=largest)


def _sources_that_say_most_first() -> list[str]:
    counts = read_verdict()["counts"]
    return sorted(SOURCES, key=lambda source: counts[source]["cases"] == 0)


def section(peak: str, quantity: str, words: Words) -> dict[str, Any]:
    """One peak; without a figure where no record has it."""
    points = {key: point for key, point in read_points().items() if quantity in point["quantities"]}
    statistics = {
        source: of_source[quantity]
        for source, of_source in read_verdict()["statistics"].items()
        if quantity in of_source
    }
    marks = [mark(key, point, quantity) for key, point in points.items()]
    bounds = {source: errors["bound"] for source, errors in statistics.items()}
    return {
        "peak": peak,
        "figure": scatter(marks, bounds) if marks else None,
        "records": {each.key: record_row(each, points[each.key], words) for each in marks},
        "columns": list(statistics_columns(statistics)),
        "knobs": list(knob_tables(statistics)),
    }


def mark(key: str, point: dict[str, Any], quantity: str) -> Mark:
    recorded, estimated = point["quantities"][quantity]
    return Mark(key=key, kind=point["kind"], holdout=point["holdout"], recorded=recorded, estimated=estimated)


def record_row(mark: Mark, point: dict[str, Any], words: Words) -> dict[str, Any]:
    """A record's line in the table, and what is said of its mark."""
    name, settings = case(point)
    error = difference(mark.recorded, mark.estimated, words)
    numbers = words["mark_numbers"].format(
        recorded=format_gib(mark.recorded), estimated=format_gib(mark.estimated), error=error
    )
    return {"mark": mark, "name": name, "settings": settings, "error": error, "text": f"{name}\n{settings}\n{numbers}"}


def case(point: dict[str, Any]) -> tuple[str, str]:
    """The model's name, and what else was asked: `micro_batch_size 8, attention eager`."""
    name, _, query = point["id"].partition("?")
    return name, ", ".join(f"{field} {value}" for field, value in parse_qsl(query))


def statistics_columns(statistics: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """By source, the cases that formulas may be tuned on and those held out."""
    for source, errors in statistics.items():
        for part in ("tuning", "holdout"):
            if part in errors:
                yield {
                    "kind": source,
                    "holdout": part == "holdout",
                    "bound": f"± {100 * errors['bound']:g} %",
                    **shown_errors(errors[part]),
                }


def knob_tables(statistics: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Errors by family and by knob, of the source that is worth most."""
    source = next((source for source in SOURCES if source in statistics), None)
    if source is not None:
        for knob, values in statistics[source]["by_knob"].items():
            rows = [{"value": value, **shown_errors(errors)} for value, errors in values.items()]
            yield {"word": KNOB_WORDS.get(knob, knob), "rows": rows}


def shown_errors(errors: dict[str, Any]) -> dict[str, Any]:
    """Statistics as they are read; errors in percent."""
    return {
        "cases": errors["cases"],
        "exact": errors["exact"],
        "median": percent(errors["median_relative_error"]),
        "ninth_tenth": percent(errors["percentile_90_relative_error"]),
        "largest": percent(errors["max_relative_error"]),
        "signed_mean": signed(errors["mean_signed_relative_error"]),
        "too_low": errors["underestimates"],
    }


SMALLEST_SHOWN = 0.00005
"""Which rounds to 0.01 %."""


def percent(error: float) -> str:
    """`0.52 %`; only what is exactly zero is `0`."""
    if 0 < error < SMALLEST_SHOWN:
        return "< 0.01 %"
    return f"{100 * error:.2f} %" if error else "0"


def signed(error: float) -> str:
    """`+0.52 %`."""
    return f"{100 * error:+.2f} %".replace("-", "\N{MINUS SIGN}") if error else "0"


def difference(recorded: int, estimated: int, words: Words) -> str:
    """How far the estimate is from the record."""
    if recorded == estimated:
        return words["equal"]
    return signed((estimated - recorded) / recorded) if recorded else f"{estimated:+,}"


def record_view(key: str, words: Words) -> dict[str, Any] | None:
    """One record: what was asked, where it comes from, every number beside the estimate's; None where there is none."""
    point = read_points().get(key)
    if point is None:
        return None
    name, _ = case(point)
    quantity = PEAKS["allocated"]
    recorded, estimated = point["quantities"][quantity]
    return {
        "name": name,
        "kind": point["kind"],
        "holdout": point["holdout"],
        "headline": words["mark_numbers"].format(
            recorded=format_gib(recorded),
            estimated=format_gib(estimated),
            error=difference(recorded, estimated, words),
        ),
        "asked": parse_qsl(point["id"].partition("?")[2]),
        "query": urlencode(query_pairs(calc.Scenario(**point["scenario"]))),
        "origin": list(origin(point, words)),
        "parts": list(number_rows(point["quantities"], words)),
    }


def origin(point: dict[str, Any], words: Words) -> Iterator[tuple[str, str]]:
    """Where a record comes from: the GPU, the versions, the commit of this project, the moment."""
    yield words["recorded_by"], point["gpu_name"] or words["recorded_by.trace"]
    yield from ((name, version) for name, version in point["versions"].items() if version)
    yield words["recorded_at"], point["recorded_at"].replace("T", " ").replace("+00:00", " UTC")
    if point["commit"]:
        yield words["commit"], point["commit"]
    yield words["record_id"], point["id"]


def number_rows(quantities: dict[str, list[int]], words: Words) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The numbers by part of the Estimate."""
    for part, names in groupby(quantities, key=lambda name: name.partition(".")[0]):
        rows = [
            {
                "name": name.removeprefix(f"{part}."),
                "recorded": recorded,
                "estimated": estimated,
                "error": difference(recorded, estimated, words),
            }
            for name in names
            for recorded, estimated in [quantities[name]]
        ]
        yield part, rows
