"""The verdict of the records: how far estimates are from them, in all, by family and by knob, held-out cases apart."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple
from statistics import fmean, median, quantiles
from typing import Any, get_args

from calc.accuracy import PEAKS, SOURCES, likenesses
from validation.compare import Comparison, asked
from validation.records import Kind, Record

KINDS: tuple[Kind, ...] = get_args(Kind)

Group = Sequence[Comparison]

FIELDS = (
    "recompute_interval",
    "recompute_group_size",
    "recompute_offload",
    "max_grad_norm",
    "zero_grad_set_to_none",
    "weight_ema",
    "accumulate_grads_in_fp32",
    "frozen_layers",
    "loss",
    "hold_outputs",
    "use_liger_kernel",
    "float8_recipe",
    "cache_implementation",
)
"""Knobs that are called by their field."""


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


KNOBS: dict[str, Callable[[Comparison], str]] = {
    "family": lambda each: each.answer.architecture.model_type,
    "task": lambda each: each.answer.step.plan.task,
    "precision": lambda each: each.answer.step.plan.precision,
    "attention": lambda each: each.answer.step.plan.attention,
    "recompute": lambda each: each.answer.step.plan.recompute,
    "optimizer": lambda each: each.answer.step.plan.optimizer,
    "adapter": lambda each: each.answer.step.plan.adapter.kind if each.answer.step.plan.adapter else "none",
    "dropout": lambda each: "on" if any(astuple(each.answer.architecture.dropouts)) else "off",
    "accumulation": lambda each: str(each.answer.scenario.gradient_accumulation_steps),
    **{name: lambda each, name=name: _in_words(getattr(each.answer.step.plan, name)) for name in FIELDS},
    "weight_dtype": lambda each: _in_words(each.answer.scenario.weight_dtype),
}
"""What the cases are told apart by."""


def statistics(group: Group) -> dict[str, Any]:
    """Relative errors of one quantity, (estimated − recorded) / recorded: their sizes, their signed mean, and how many
    estimates are too low."""
    errors = [each.relative_error for each in group]
    sizes = sorted(map(abs, errors))
    return {
        "cases": len(errors),
        "exact": sizes.count(0.0),
        "median_relative_error": median(sizes),
        "percentile_90_relative_error": quantiles(sizes, n=10, method="inclusive")[-1] if sizes[1:] else sizes[0],
        "max_relative_error": sizes[-1],
        "mean_signed_relative_error": fmean(errors),
        "underestimates": sum(error < 0 for error in errors),
    }


def grouped(comparisons: Iterable[Comparison], key: Callable[[Comparison], str]) -> dict[str, list[Comparison]]:
    groups: dict[str, list[Comparison]] = defaultdict(list)
    for each in comparisons:
        groups[key(each)].append(each)
    return dict(groups)


def by_quantity(comparisons: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    return grouped(comparisons, lambda each: each.quantity)


def of_kind(comparisons: Iterable[Comparison], kind: Kind) -> list[Comparison]:
    return [each for each in comparisons if each.record.kind == kind]


def held_out(group: Group, holdout: bool) -> list[Comparison]:
    return [each for each in group if each.record.holdout is holdout]


def by_knob(group: Group) -> dict[str, dict[str, list[Comparison]]]:
    """{knob: {value: cases}} of the cases that are not held out; a case is in one value of every knob."""
    tuning = held_out(group, False)
    return {knob: dict(sorted(grouped(tuning, setting).items())) for knob, setting in KNOBS.items()}


def verdict(records: Sequence[Record], comparisons: Group) -> dict[str, Any]:
    """What calc.accuracy.read_verdict() gives: `counts` and `statistics` by kind."""
    compared: dict[Kind, list[Comparison]] = {kind: of_kind(comparisons, kind) for kind in KINDS}
    return {
        "counts": {kind: counts(records, cases, kind) for kind, cases in compared.items()},
        "statistics": {
            kind: {name: quantity_statistics(name, group) for name, group in by_quantity(cases).items()}
            for kind, cases in compared.items()
        },
    }


def counts(records: Iterable[Record], compared: Group, kind: Kind) -> dict[str, int]:
    """Cases that were compared, those of them that are held out, and cases that did not run."""
    holdout = {record_key(each.record): each.record.holdout for each in compared}
    return {
        "cases": len(holdout),
        "holdout": sum(holdout.values()),
        "did_not_run": sum(record.kind == kind and bool(record.failed) for record in records),
    }


def quantity_statistics(name: str, group: Group) -> dict[str, Any]:
    """The bound; errors of all cases, of those formulas may be tuned on, of those held out; a peak's by knob too."""
    parts = {"all": group, "tuning": held_out(group, False), "holdout": held_out(group, True)}
    result: dict[str, Any] = {"bound": group[0].bound}
    result |= {part: statistics(cases) for part, cases in parts.items() if cases}
    if name in PEAKS.values():
        result["by_knob"] = {
            knob: {value: statistics(cases) for value, cases in values.items()}
            for knob, values in by_knob(group).items()
        }
    return result


def points(comparisons: Group) -> dict[str, dict[str, Any]]:
    """What calc.accuracy.read_points() gives: every record that was compared."""
    return {key: point(group) for key, group in grouped(comparisons, lambda each: record_key(each.record)).items()}


def point(group: Group) -> dict[str, Any]:
    """One record as it is drawn and shown: what was asked, where it comes from, [recorded, estimated] by quantity."""
    record = group[0].record
    return {
        "kind": record.kind,
        "id": record.id,
        "holdout": record.holdout,
        "knobs": {knob: setting(group[0]) for knob, setting in KNOBS.items()},
        "scenario": asked(record),
        "gpu_name": record.gpu_name,
        "versions": record.versions,
        "commit": record.commit,
        "recorded_at": record.recorded_at,
        "quantities": {each.quantity: [each.measured, each.estimated] for each in group},
    }


def record_key(record: Record) -> str:
    """The name of a record in addresses: eight hexadecimal digits of its content."""
    return hashlib.blake2b(json.dumps(asdict(record)).encode(), digest_size=4).hexdigest()


def nearest(comparisons: Iterable[Comparison]) -> dict[str, dict[str, Any]]:
    """What calc.accuracy.nearest_accuracy() reads: errors of the peak by what a question may share with the cases."""
    groups: dict[str, dict[str, list[Comparison]]] = {source: defaultdict(list) for source in SOURCES}
    for each in comparisons:
        if each.quantity == PEAKS["allocated"]:
            for alike in likenesses(each.answer.architecture.model_type, each.answer.step.plan):
                groups[each.record.kind][alike].append(each)
    kept = ("cases", "median_relative_error", "max_relative_error", "underestimates")
    return {
        source: {
            alike: {name: number for name, number in statistics(group).items() if name in kept}
            for alike, group in sorted(of_source.items())
        }
        for source, of_source in groups.items()
    }
