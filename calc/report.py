"""Answers as a person reads them in a terminal. The only module that knows rich; imported when a table is printed."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .advice import Advice
from .comparison import Comparison
from .estimation import Estimate
from .explain import Formula
from .hardware import Gpu
from .inventory import TensorEntry
from .lengths import LENGTH_NOTES, LengthReport
from .listing import ListedModel
from .mixture_designs import ExpertDesign
from .quantisation import CheckpointWeights
from .scenario import Scenario, Task
from .solution import Minimise, Solution
from .timeline import Phase
from .tradeoff import Tradeoff
from .units import GB, GIB, MIB, TERA, format_bytes, format_count, format_flops, format_gib

BAR_WIDTH = 24
UNIT_FORMATS = {"bytes": format_bytes, "FLOP": format_flops, "parameters": format_count}

COMPARED = {
    "parameters.total": "parameters",
    "parameters.trainable": "trained parameters",
    "memory.peak_allocated_bytes": "peak",
    "memory.saved_activation_bytes": "kept for backward",
    "memory.first_step_peak_allocated_bytes": "first step's peak",
    "flops.total": "FLOPs of one step",
    "flops.recompute": "recomputed FLOPs",
    "flops.model_flops_per_token": "FLOPs per token",
}
"""What a comparison calls its quantities, beside the parts of the peak."""
AT_PEAK = "memory.at_peak."


def verdict(estimate: Estimate) -> str:
    """One sentence: does it fit, and by how much."""
    memory = estimate.memory
    capacity, headroom = memory.gpu_memory_bytes, memory.headroom_bytes
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
    for table in (_at_peak(estimate), _phases(estimate), _parameters(estimate), _flops(estimate)):
        console.print(table)
        console.print()
    _print_notes(console, estimate.notes)


PER = {
    Task.TRAINING: "{flops} a step",
    Task.EVALUATION: "{flops} a batch",
    Task.INFERENCE: "{flops} for prompts and outputs",
}
"""What the FLOPs are of."""


def _at_peak(estimate: Estimate) -> Table:
    memory = estimate.memory
    rows = [
        (_words(part), format_bytes(size), f"{size:,}", "█" * round(BAR_WIDTH * size / memory.peak_allocated_bytes))
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
    return _table("At the peak", ("", "size", "bytes", ""), rows)


def _phases(estimate: Estimate) -> Table:
    rows = (
        (phase.name, format_gib(phase.peak_allocated_bytes), format_gib(phase.end_allocated_bytes))
        for phase in estimate.memory.phases
    )
    return _table("Phases", ("", "peak", "at the end"), rows)


def _parameters(estimate: Estimate) -> Table:
    parameters = estimate.parameters
    counts = {
        **parameters.by_component,
        "total": parameters.total,
        "trainable": parameters.trainable,
        "frozen": parameters.frozen,
    }
    return _table(
        "Parameters", ("", "count", "exactly"), ((_words(n), format_count(c), f"{c:,}") for n, c in counts.items() if c)
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
    return _table(
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
        return f"The cheapest recompute that fits {gpu} is {_way(solution.estimate.scenario)}."
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
    quantities = [(word, *_compared(comparison, name)) for name, word in COMPARED.items()]
    at_peak = [
        (_words(name.removeprefix(AT_PEAK)), *_compared(comparison, name))
        for name, values in comparison.quantities.items()
        if name.startswith(AT_PEAK) and any(values)
    ]
    for title, rows in {"Scenarios": asked, "Side by side": quantities, "At the peak": at_peak}.items():
        table = _table(title, columns, rows)
        table.columns[0].no_wrap = True
        console.print(table)
        console.print()
    _print_notes(console, list(dict.fromkeys(note for answer in answers for note in answer.notes)))


def _field(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _compared(comparison: Comparison, name: str) -> list[str]:
    """Each scenario's value and, below it, how much more or less it is than the first's."""
    unit = {"memory": format_bytes, "flops": format_flops, "parameters": format_count}[name.partition(".")[0]]
    pairs = zip(comparison.quantities[name], comparison.differences[name], strict=True)
    return [f"{unit(value)}\n{'+' * (change > 0)}{unit(change)}" if change else unit(value) for value, change in pairs]


def print_formulas(formulas: Iterable[Formula]) -> None:
    """Each formula, with its numbers, beside the ledger's answer."""
    console = Console(highlight=False)
    for formula in formulas:
        console.print(Text(formula.title, style="bold"))
        letters = ", ".join(f"{letter} = {name} = {value}" for letter, (name, value) in formula.symbols.items())
        lines = {
            "formula": formula.statement,
            "where": letters,
            "numbers": formula.substituted,
            "value": _quantity(formula.value, formula.unit),
            "ledger": None if formula.ledger_value is None else _quantity(formula.ledger_value, formula.unit),
            "differs by": formula.difference,
            "leaves out": formula.leaves_out,
            "note": formula.note,
            "source": formula.source,
        }
        grid = Table.grid(padding=(0, 2))
        for name, text in lines.items():
            if text:
                grid.add_row(f"  {name}", Text(text))
        console.print(grid)
        console.print()


def print_weights(weights: CheckpointWeights) -> None:
    """The total, then one line for equal tensors."""
    console, published = Console(highlight=False), weights.published_bytes
    method = f"{weights.quant_method}, the rest {weights.dtype}" if weights.quant_method else weights.dtype
    console.print(Text(f"{format_bytes(weights.total_bytes)} of weights in {method}.", style="bold"))
    console.print(f"{weights.total_bytes:,} bytes; all in {weights.dtype} {weights.unquantised_bytes:,}.")
    if published:
        console.print(f"Published: {published.total:,} bytes, {published.of} ({published.source}).", soft_wrap=True)
    rows = (
        (
            row.name,
            f"[{', '.join(f'{size:,}' for _, size in row.shape)}] {row.dtype}",
            row.formula,
            f"{row.count} ×" if row.count > 1 else "",
            format_bytes(row.total_bytes),
        )
        for row in weights.tensors
    )
    console.print(_table("Tensors", ("", "shape", "formula", "", "together"), rows))


def print_tensors(entries: Iterable[TensorEntry]) -> None:
    """One line per entry: its formula with its numbers, and what there is of it at the peak."""
    rows = (
        (
            entry.name,
            _words(entry.kind),
            f"{entry.count_at_peak} ×" if entry.count_at_peak > 1 else "",
            entry.formula,
            f"[{', '.join(f'{size:,}' for _, size in entry.shape)}] {entry.dtype}",
            format_bytes(entry.bytes * entry.count_at_peak),
        )
        for entry in entries
    )
    columns = ("tensor", "for", "count", "each", "shape", "together")
    Console(highlight=False).print(_table("Largest at the peak", columns, rows))


def print_tradeoffs(tradeoffs: Iterable[Tradeoff]) -> None:
    """One line per way of recomputation."""
    rows = (
        (
            _way(each.scenario),
            format_bytes(each.kept_bytes),
            format_gib(each.estimate.memory.peak_allocated_bytes),
            f"{each.recompute_flops / (each.estimate.flops.total - each.recompute_flops):+.1%}",
            _fits(each.estimate),
        )
        for each in tradeoffs
    )
    columns = ("recompute", "kept for backward", "peak", "FLOPs", "fits")
    Console(highlight=False).print(_table("Recomputation", columns, rows))


def print_expert_designs(designs: Iterable[ExpertDesign]) -> None:
    """One line per way to cut the experts."""
    rows = (
        (
            f"{each.num_experts_per_tok} of {each.num_experts}{', as asked' if each.is_asked else ''}",
            f"{each.expert_size:,}",
            f"{each.combinations:,}" if each.combinations < FEW_COMBINATIONS else f"{each.combinations:.2e}",
            f"{each.capacity:,}",
            format_count(each.estimate.parameters.total),
            format_count(each.estimate.parameters.active_per_token),
            format_flops(each.estimate.flops.model_flops_per_token),
            format_bytes(each.estimate.memory.saved_activation_bytes),
            format_gib(each.estimate.memory.peak_allocated_bytes),
        )
        for each in designs
    )
    columns = ("experts", "width", "combinations", "tokens each", "parameters", "active", "FLOPs/token", "kept", "peak")
    Console(highlight=False).print(_table("Mixtures", columns, rows))


FEW_COMBINATIONS = 10**12
"""As many are written out."""


def _way(scenario: Scenario) -> str:
    if scenario.recompute_interval > 1:
        return f"{scenario.recompute}, 1 layer of {scenario.recompute_interval}"
    if scenario.recompute_group_size > 1:
        return f"{scenario.recompute}, groups of {scenario.recompute_group_size} layers"
    return scenario.recompute


def _fits(estimate: Estimate) -> str:
    return {None: "", True: "yes", False: "no"}[estimate.memory.fits]


def print_advice(advice: Iterable[Advice]) -> None:
    """One line per change, what saves most first."""
    rows = (
        (
            _words(each.key),
            format_bytes(each.saved_bytes),
            format_gib(each.estimate.memory.peak_allocated_bytes),
            f"{each.added_flops / (each.estimate.flops.total - each.added_flops):+.1%}",
            _words(each.effect),
            _fits(each.estimate),
        )
        for each in advice
    )
    columns = ("change", "saves", "peak", "FLOPs", "training", "fits")
    Console(highlight=False).print(_table("What would lower the peak", columns, rows))


def print_lengths(report: LengthReport) -> None:
    """One line per way of batching."""
    rows = (
        (
            _words(each.way),
            f"{each.num_sequences:,}",
            f"{each.padding_tokens / each.computed_tokens:.1%}",
            f"{each.wasted_flops / each.flops:.1%}",
            _peak_and_length(each.mean),
            _peak_and_length(each.longest),
            _fits(each.longest),
        )
        for each in report.batchings
    )
    columns = ("batches", "rows", "padding", "wasted", "mean row", "longest row", "fits")
    samples = f"{report.num_samples:,} samples of {report.shortest:,} to {report.longest:,} tokens"
    together = f"{format_count(report.num_tokens)} tokens, {format_flops(report.flops)}"
    console = Console(highlight=False)
    console.print(_table(f"{samples}: {together}", columns, rows))
    _print_notes(console, LENGTH_NOTES)


def _peak_and_length(estimate: Estimate) -> str:
    return f"{format_gib(estimate.memory.peak_allocated_bytes)}, {estimate.scenario.sequence_length:,}"


def print_models(models: Sequence[ListedModel]) -> None:
    """One line per model."""
    columns = ("name", "family", "parameters", "layers", "hidden", "positions")
    rows = (
        (
            model.name,
            model.family,
            format_count(model.parameters),
            f"{model.architecture.num_layers:,}",
            f"{model.architecture.hidden_size:,}",
            f"{model.architecture.max_position_embeddings:,}",
        )
        for model in models
    )
    table = _table(f"{len(models)} models", columns, rows)
    table.padding = (0, 1, 0, 0)  # so that the longest names fit into 80 columns
    Console(highlight=False).print(table)


def print_gpus(gpus: Sequence[Gpu]) -> None:
    """One line per GPU."""
    rows = (
        (
            gpu.name,
            _in_units(gpu.memory_bytes, GIB, 0),
            _in_units(gpu.usable_memory_bytes, GIB, 1),
            _in_units(gpu.memory_bandwidth_bytes_per_second, GB, 0),
            _in_units(gpu.dense_flops_per_second["bf16"], TERA, 0),
            _in_units(gpu.num_sms, 1, 0),
            _in_units(gpu.l2_bytes, MIB, 0),
            _in_units(gpu.tdp_watts, 1, 0),
        )
        for gpu in gpus
    )
    columns = ("name", "GiB", "usable", "GB/s", "bf16 TFLOP/s", "SMs", "L2 MiB", "W")
    Console(highlight=False).print(_table(f"{len(gpus)} GPUs", columns, rows))


def _in_units(value: int | None, unit: int, digits: int) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def _print_notes(console: Console, notes: Sequence[str]) -> None:
    console.print(Text("Notes", style="bold"))
    for note in notes:
        console.print(Padding(Text(f"· {note}"), (0, 0, 0, 1)))


def _table(title: str, columns: Sequence[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table whose first column is words and whose others are figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number and column else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _quantity(value: int, unit: str) -> str:
    return f"{UNIT_FORMATS[unit](value)} ({value:,} {unit})"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")
