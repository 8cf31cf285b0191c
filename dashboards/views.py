"""What the templates show of one answer: the Estimate's JSON, its figures, and every text made of numbers."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import calc
from calc.solution import Maximise, Minimise
from calc.units import GIB, format_exact_bytes, format_gib

from . import figures
from .address import query_pairs
from .comparison import Alternative, alternatives, lora_rank, nearest_that_fits, needed_bytes

Words = Mapping[str, str]

SMALLEST_SHOWN_BYTES = GIB // 20
"""Less rounds to 0.0 GiB."""

SOUGHT = (Maximise.MICRO_BATCH_SIZE, Maximise.SEQUENCE_LENGTH)
"""The sizes of which the page shows the largest that fits."""


def answer_view(scenario: calc.Scenario, words: Words) -> dict[str, Any]:
    """Everything the answer's templates need for `scenario`."""
    estimate = calc.estimate(scenario)
    asked = estimate.scenario
    answer = estimate.to_dict()
    memory = answer["memory"]
    phase_words = {"forward": words["forward"], "backward": words["backward"], "optimizer": words["optimizer_phase"]}
    rows = alternatives(scenario, estimate)
    advice = [advice_row(row, estimate, words) for row in rows]
    nearest = nearest_that_fits(rows)
    drawn = figures.curve(memory)
    return {
        "answer": answer,
        "bar": figures.bar(memory),
        "curve": drawn,
        "readouts": readouts(drawn, phase_words),
        "phase_words": phase_words,
        "peak_place": place(drawn["peak"]),
        "accuracy": accuracy_text(answer["accuracy"], words),
        "advice": advice,
        "nearest": advice[rows.index(nearest)] if nearest else None,
        "largest": [bound(scenario, asked, words, maximise=field) for field in SOUGHT] if scenario.gpu else [],
        "smallest_gpu": bound(scenario, asked, words, minimise=Minimise.GPU),
        "ledger": ledger(answer),
        "snippet": python_snippet(scenario),
        "model_name": scenario.model if isinstance(scenario.model, str) else words["config_used"],
        "resolved_sequence_length": answer["scenario"]["sequence_length"],
    }


def readouts(drawn: dict[str, Any], phase_words: Words) -> list[dict[str, Any]]:
    """Per point of the curve: where it is and what the line below the curve says of it."""
    return [
        {
            "x": point["x"],
            "y": point["y"],
            "is_peak": point["x"] == round(drawn["peak"]["x"], 2),
            "text": f"{phase_words[point['phase']]}, {place(point)}: {format_gib(point['allocated_bytes'])}"
            f" ({format_exact_bytes(point['allocated_bytes'])})",
        }
        for point in drawn["points"]
    ]


def place(point: dict[str, Any]) -> str:
    """The part of the model at a point of the curve: `layer 12`, `head`."""
    return point["label"] if point["layer"] is None else f"{point['label']} {point['layer']}"


def accuracy_text(accuracy: dict[str, Any] | None, words: Words) -> str:
    """How far such answers were from recorded cases."""
    if accuracy is None:
        return words["accuracy_none"]
    median = f"{100 * accuracy['median_relative_error']:.1f} %"
    return words[f"accuracy.{accuracy['compared_with']}"].format(median=median, cases=accuracy["cases"])


def advice_row(row: Alternative, current: calc.Estimate, words: Words) -> dict[str, Any]:
    """One line of the comparison: what `row` needs, saves and costs against the `current` answer."""
    parameters = row.estimate.parameters
    saved = needed_bytes(current) - needed_bytes(row.estimate)
    return {
        "title": words[f"alternative.{row.key}"].format(rank=lora_rank(row.scenario)),
        "query": urlencode(query_pairs(row.scenario)),
        "is_current": row.is_current,
        "needed": needed_bytes(row.estimate),
        "saved": saved if abs(saved) >= SMALLEST_SHOWN_BYTES else 0,
        "flops_change": signed_percent(row.estimate.flops.total, current.flops.total),
        "trainable": percent(parameters.trainable, parameters.total),
        "fits": row.estimate.memory.fits,
    }


def signed_percent(value: int, reference: int) -> str:
    """The change from `reference` to `value`: `+28 %`; empty where it rounds to nothing."""
    change = round(100 * (value - reference) / reference)
    return f"{change:+d} %".replace("-", "\N{MINUS SIGN}") if change else ""


def percent(part: int, whole: int) -> str:
    """`100 %`, `0.12 %`."""
    return "100 %" if part == whole else f"{100 * part / whole:.2g} %"


def ledger(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows behind each part of the peak, largest first, and their sum."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for tensor in answer["tensors"]:
        if tensor["count_at_peak"]:
            groups.setdefault(tensor["kind"], []).append(tensor)
    library = min((tensor["source"] for tensor in answer["tensors"]), key=len)
    return [
        {"name": part, "bytes": size, "library": library, "rows": _largest_first(groups.get(part, []), library)}
        for part, size in figures.parts(answer["memory"]).items()
    ]


def _largest_first(tensors: list[dict[str, Any]], library: str) -> list[dict[str, Any]]:
    rows = [
        {
            "name": tensor["name"],
            "symbols": " × ".join(str(symbol) for symbol, _ in tensor["shape"]),
            "numbers": " × ".join(f"{size:,}" for _, size in tensor["shape"]),
            "dtype": tensor["dtype"],
            "bytes": tensor["bytes"],
            "count": tensor["count_at_peak"],
            "together": tensor["bytes"] * tensor["count_at_peak"],
            "made_by": tensor["source"].removeprefix(library).removeprefix(", "),
        }
        for tensor in tensors
    ]
    return sorted(rows, key=lambda row: -row["together"])


def python_snippet(scenario: calc.Scenario) -> str:
    """The same question in Python."""
    fields = {"model": scenario.model, **scenario.model_dump(mode="json", exclude_defaults=True)}
    arguments = "".join(f"    {name}={value!r},\n" for name, value in fields.items())
    question = f"calc.estimate(calc.Scenario(\n{arguments}))"
    return f"import calc\n\nestimate = {question}\nprint(estimate.memory.peak_allocated_bytes)\n"


def bound(scenario: calc.Scenario, asked: calc.Scenario, words: Words, **sought: Maximise | Minimise) -> dict[str, Any]:
    """The largest or least that fits, as a change to `scenario`; `asked` is the scenario with its gaps filled in."""
    solution = calc.solve(scenario, **sought)
    field, value = solution.sought, solution.value
    if value is None:
        return {"text": words[f"bound_none.{field}"], "query": None}
    changed = scenario.model_copy(update={field: value})
    return {
        "text": words[f"bound.{field}"].format(value=value if isinstance(value, str) else f"{value:,}"),
        "query": None if value == getattr(asked, field) else urlencode(query_pairs(changed)),
    }
