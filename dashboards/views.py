"""What the templates show of one answer: the Estimate's JSON, its figures, and every text made of numbers."""

from collections.abc import Mapping
from typing import Any

import calc
from calc.roofline import InferenceTime
from calc.timeline import Phase
from calc.units import format_bytes, format_exact_bytes, format_gib, format_rate, format_seconds

from . import figures

Words = Mapping[str, str]


PHASE_KEYS = {Phase.OPTIMIZER: "optimizer_phase"}
"""Where a phase's word has another name."""
RESOLVED = ("sequence_length", "prompt_length", "output_length", "max_num_batched_tokens", "max_num_seqs")
"""Fields that may be left open, and what the answer takes then."""


def answer_view(scenario: calc.Scenario, words: Words) -> dict[str, Any]:
    """Everything the answer's templates need for `scenario`."""
    estimate = calc.estimate(scenario)
    answer = estimate.to_dict()
    memory = answer["memory"]
    phase_words = {phase.value: words[PHASE_KEYS.get(phase, phase)] for phase in Phase}
    drawn = figures.curve(memory)
    return {
        "answer": answer,
        "bar": figures.bar(memory),
        "curve": drawn,
        "readouts": readouts(drawn, phase_words),
        "phase_words": phase_words,
        "peak_place": place(drawn["peak"]),
        "accuracy": accuracy_text(answer["accuracy"], words),
        "speed_line": speed_line(estimate.time, words) if estimate.time else "",
        "engine_line": engine_line(answer["engine"], words),
        "ledger": ledger(answer),
        "snippet": python_snippet(scenario),
        "model_name": scenario.model if isinstance(scenario.model, str) else words["config_used"],
        "resolved": {field: answer["scenario"][field] for field in RESOLVED if answer["scenario"][field] is not None},
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


def speed_line(time: InferenceTime, words: Words) -> str:
    """One sentence: how long a token takes, how many come a second, what they wait for."""
    prompt, token = format_seconds(time.prefill_seconds), time.seconds_per_output_token
    if token is None or time.last_decode is None or time.output_tokens_per_second is None:
        return words["speed_line_prompt"].format(prompt=prompt)
    return words["speed_line"].format(
        token=format_seconds(token),
        rate=format_rate(time.output_tokens_per_second),
        prompt=prompt,
        bound=words[f"bound.{time.last_decode.bound}"],
    )


def engine_line(engine: dict[str, Any] | None, words: Words) -> str:
    """One sentence: how many sequences an engine has pages for."""
    if engine is None or engine["pool_bytes"] is None:
        return ""
    return words["engine_line"].format(
        limit=format_gib(engine["limit_bytes"]),
        pool=format_gib(engine["pool_bytes"]),
        most=f"{engine['most_sequences']:,}",
        concurrency=f"{engine['max_concurrency']:.2f}",
        wasted=format_bytes(engine["wasted_bytes"]),
    )


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
