"""An estimate, and what solve and compare make of several."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from calc.comparison import AT_PEAK, MOST_SEQUENCES, Comparison, Unit, unit_of
from calc.engine import Engine
from calc.estimation import Estimate
from calc.scenario import Task
from calc.solution import Minimise, Solution
from calc.timeline import Phase
from calc.units import GIB, format_bytes, format_count, format_flops, format_gib, format_rate, format_seconds

from .tables import print_notes, table, way, words
from .times import time_tables

BAR_WIDTH = 24

COMPARED = {
    "parameters.total": "parameters",
    "parameters.trainable": "trained parameters",
    "memory.peak_allocated_bytes": "peak",
    **{f"memory.phases.{phase}.peak_allocated_bytes": f"peak in {phase}" for phase in Phase},
    "memory.first_step_peak_allocated_bytes": "first step's peak",
    "memory.saved_activation_bytes": "kept for backward",
    "memory.kv_cache_bytes": "key/value cache at the end",
    MOST_SEQUENCES: "sequences at most",
    "time.prefill_seconds": "prompt (prefill)",
    "time.seconds_per_output_token": "a token of the output",
    "time.output_tokens_per_second": "output tokens a second",
    "time.total_seconds": "prompt and output",
    "time.joules_per_output_token": "energy a token, at most",
    "flops.total": "FLOPs",
    "flops.prefill": "FLOPs of the prompt",
    "flops.decode": "FLOPs of the last token",
    "flops.recompute": "recomputed FLOPs",
    "flops.model_flops_per_token": "FLOPs per token",
}
"""What a comparison calls its quantities, beside the parts of the peak."""
COMPARED_AS: Mapping[Unit, Callable[[Any], str]] = {
    Unit.PARAMETERS: format_count,
    Unit.BYTES: format_bytes,
    Unit.FLOPS: format_flops,
    Unit.SECONDS: format_seconds,
    Unit.TOKENS_PER_SECOND: format_rate,
    Unit.JOULES: lambda joules: f"{joules:.3g} J",
    Unit.SEQUENCES: lambda count: f"{count:,}",
}


def verdict(estimate: Estimate) -> str:
    """One sentence: does it fit, and by how much."""
    memory = estimate.memory
    capacity, headroom = memory.usable_bytes, memory.headroom_bytes
    if capacity is None or headroom is None:
        return f"The peak is {format_gib(memory.peak_allocated_bytes)}. Name a GPU to see whether it fits."
    figures = f"{(capacity - headroom) / GIB:,.1f} of {format_gib(capacity)}"
    if memory.fits:
        return f"Fits. {figures}, {format_gib(headroom)} free."
    return f"Does not fit. {figures}, {format_gib(-headroom)} too much."


def print_estimate(estimate: Estimate) -> None:
    """The verdict, then what is behind it."""
    console = Console(highlight=False)
    memory, flops = estimate.memory, estimate.flops
    colour = {None: "", True: " green", False: " red"}[memory.fits]
    console.print(Text(verdict(estimate), style=f"bold{colour}"), soft_wrap=True)
    place = "" if memory.peak_phase is Phase.OPTIMIZER else f", {memory.peak_at}"
    whole = PER[estimate.scenario.task].format(flops=format_flops(flops.total))
    console.print(f"Peak in {memory.peak_phase}{place}; {whole}.\n")
    times = time_tables(estimate.time) if estimate.time else ()
    pages = [_pages(estimate, estimate.engine)] if estimate.engine else []
    for each in (_at_peak(estimate), _phases(estimate), *pages, _parameters(estimate), _flops(estimate), *times):
        console.print(each)
        console.print()
    print_notes(console, estimate.notes)


PER = {
    Task.TRAINING: "{flops} a step",
    Task.EVALUATION: "{flops} a batch",
    Task.INFERENCE: "{flops} for prompts and outputs",
}
"""What the FLOPs are of."""


def _at_peak(estimate: Estimate) -> Table:
    memory = estimate.memory
    rows = [
        (words(part), format_bytes(size), f"{size:,}", "█" * round(BAR_WIDTH * size / memory.peak_allocated_bytes))
        for part, size in memory.at_peak.items()
        if size
    ]
    beside = {
        "total": memory.peak_allocated_bytes,
        "library workspaces, beside it": memory.library_workspace_bytes,
        "CUDA context (assumed), beside it": memory.assumed_context_bytes,
        "what nvidia-smi shows (simulated)": memory.device_bytes,
    }
    rows += [(name, format_bytes(size), f"{size:,}", "") for name, size in beside.items() if size is not None]
    return table("At the peak", ("", "size", "bytes", ""), rows)


def _phases(estimate: Estimate) -> Table:
    rows = (
        (phase.name, format_gib(phase.peak_allocated_bytes), format_gib(phase.end_allocated_bytes))
        for phase in estimate.memory.phases
    )
    return table("Phases", ("", "peak", "at the end"), rows)


def _pages(estimate: Estimate, engine: Engine) -> Table:
    figures = engine.to_dict(estimate.memory.library_workspace_bytes or 0)
    sizes = {
        "of one sequence": figures["sequence_bytes"],
        "shared by all": figures["shared_bytes"],
        "no token fills": figures["wasted_bytes"],
        "the largest pass, beside them": figures["activation_peak_bytes"],
        "room for pages": figures["pool_bytes"],
    }
    rows = [(name, format_bytes(size), f"{size:,}") for name, size in sizes.items() if size]
    if figures["pool_bytes"] is not None:
        rows.append(("concurrency, as vLLM logs it", f"{figures['max_concurrency']:.2f}x", ""))
        rows.append(("sequences at most", f"{figures['most_sequences']:,}", ""))
    return table("Pages", ("", "", "bytes"), rows)


def _parameters(estimate: Estimate) -> Table:
    parameters = estimate.parameters
    counts = {
        **parameters.by_component,
        "total": parameters.total,
        "trainable": parameters.trainable,
        "frozen": parameters.frozen,
    }
    return table(
        "Parameters", ("", "count", "exactly"), ((words(n), format_count(c), f"{c:,}") for n, c in counts.items() if c)
    )


def _flops(estimate: Estimate) -> Table:
    flops = estimate.flops
    counts = {
        "prefill": flops.prefill,
        "the last token's decoding": flops.decode,
        "forward": flops.forward,
        "backward": flops.backward,
        "recompute": flops.recompute,
        "total": flops.total,
        "element-wise, beside it": flops.elementwise,
        "of the model, per token": flops.model_flops_per_token,
    }
    return table(
        "FLOPs of prompts and outputs" if flops.prefill else "FLOPs of one step",
        ("", "count", "exactly"),
        ((name, format_flops(count), f"{count:,}") for name, count in counts.items() if count),
    )


def solution_sentence(solution: Solution) -> str:
    """One sentence: what was sought, and the value."""
    gpu, sought = solution.estimate.scenario.gpu, solution.sought
    if solution.value is None:
        return "No GPU of the catalogue holds the step." if sought is Minimise.GPU else f"No {sought} fits {gpu}."
    if sought is Minimise.GPU:
        return f"The smallest GPU that holds the step is {solution.value}."
    if sought is Minimise.RECOMPUTE:
        return f"The cheapest recompute that fits {gpu} is {way(solution.estimate.scenario)}."
    return f"The largest {sought} that fits {gpu} is {solution.value:,}."


def print_solution(solution: Solution) -> None:
    """The value and what limits it, then the estimate at the value."""
    console = Console(highlight=False)
    console.print(Text(solution_sentence(solution), style="bold"), soft_wrap=True)
    console.print(f"Limit: {solution.reason}.\n", soft_wrap=True)
    print_estimate(solution.estimate)


def print_comparison(comparison: Comparison) -> None:
    """One column a scenario: the verdict, the fields that differ, then the quantities, each with its difference."""
    answers, console = comparison.estimates, Console(highlight=False)
    models = [answer.scenario.model for answer in answers]
    columns = ("", *(model if isinstance(model, str) else "own config" for model in models))
    asked = [(name, *map(_field, values)) for name, values in comparison.fields.items()]
    asked.append(("verdict", *map(verdict, answers)))
    quantities = [
        (word, *_compared(comparison, name)) for name, word in COMPARED.items() if name in comparison.quantities
    ]
    at_peak = [
        (words(name.removeprefix(AT_PEAK)), *_compared(comparison, name))
        for name, values in comparison.quantities.items()
        if name.startswith(AT_PEAK) and any(values)
    ]
    for title, rows in {"Scenarios": asked, "Side by side": quantities, "At the peak": at_peak}.items():
        made = table(title, columns, rows)
        made.columns[0].no_wrap = True
        console.print(made)
        console.print()
    print_notes(console, list(dict.fromkeys(note for answer in answers for note in answer.notes)))


def _field(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _compared(comparison: Comparison, name: str) -> list[str]:
    """Each scenario's value and, below it, how much more or less it is than the first's; empty where it has none."""
    form = COMPARED_AS[unit_of(name)]
    pairs = zip(comparison.quantities[name], comparison.differences[name], strict=True)
    return [
        "" if value is None else form(value) + (f"\n{_signed(change, form)}" if change else "")
        for value, change in pairs
    ]


def _signed(change: float, form: Callable[[Any], str]) -> str:
    return ("+" if change > 0 else "-") + form(abs(change))
