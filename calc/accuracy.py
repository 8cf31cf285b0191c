"""How well the formulas met the recorded cases: those nearest to a question, and all of them.

`python -m validation report` generates the catalogue's `accuracy.json`, `verdict.json` and `records.json` from the
records, `python -m validation published` its `published.json`; each is read when first asked for.
"""

from functools import cache
from typing import Any

from .catalogue import read_entries
from .plan import Plan
from .scenario import Task

FILE_NAME = "accuracy.json"
SOURCES = ("measurement", "trace")
"""A measured GPU is worth more than a trace."""

VERDICT_FILE_NAME = "verdict.json"
POINTS_FILE_NAME = "records.json"
PUBLISHED_FILE_NAME = "published.json"
PEAKS = {
    "allocated": "memory.peak_allocated_bytes",
    "reserved": "memory.peak_reserved_bytes",
    "device": "memory.device_bytes",
}
"""The bytes that the verdict judges apart: of tensors, with the allocator's gaps, and all that the process takes of the
device."""


def likenesses(model_type: str, plan: Plan) -> list[str]:
    """What a recorded case may share with the question, the most first; always what runs."""
    family = f"{model_type}, {plan.task}, {plan.implementation}, {plan.precision}"
    if plan.quantisation is not None:
        family += f", weights in {plan.quantisation.name or plan.quantisation.method}"
    kernel = f"{family}, {plan.attention}"
    if plan.task is Task.INFERENCE:
        return [f"{kernel}, {plan.cache_implementation} cache", kernel, family]
    adapter = plan.adapter.kind if plan.adapter else "no adapter"
    return [f"{kernel}, recompute {plan.recompute}, {plan.optimizer}, {adapter}", kernel, family]


def nearest_accuracy(model_type: str, plan: Plan) -> dict[str, Any] | None:
    """`accuracy` of the Estimate: errors of peak_allocated_bytes in the recorded cases that share most; or None."""
    recorded = read_accuracy()
    for alike in likenesses(model_type, plan):
        for source in SOURCES:
            if alike in recorded[source]:
                return {"compared_with": source, "alike": alike, **recorded[source][alike]}
    return None


@cache
def read_accuracy() -> dict[str, dict[str, Any]]:
    """{source: {likeness: {cases, median_relative_error, max_relative_error, underestimates}}}."""
    return read_entries(FILE_NAME)


@cache
def read_verdict() -> dict[str, Any]:
    """All recorded cases: {counts, statistics}, each by source; see validation/verdict.py."""
    return read_entries(VERDICT_FILE_NAME)


@cache
def read_points() -> dict[str, dict[str, Any]]:
    """By its key, every record that an estimate is compared with: what was asked, its origin, both sides' numbers."""
    return read_entries(POINTS_FILE_NAME)


@cache
def read_published() -> dict[str, dict[str, Any]]:
    """By its name, each table of published measurements: its source, how many figures, how far they are from ours."""
    return read_entries(PUBLISHED_FILE_NAME)
