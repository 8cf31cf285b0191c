"""What the page Serve shows: how fast a generation is and why, how many sequences fit, what a larger batch gains."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast
from urllib.parse import urlencode

import calc
from calc.explain import Formula, formulas
from calc.inference import READ_BY_INFERENCE
from calc.roofline import InferenceTime, PassTime
from calc.scenario import Scenario, Task
from calc.solution import Maximise
from calc.target import Limit
from calc.traffic import Holds
from calc.units import format_bytes, format_gib, format_rate, format_seconds

from .address import CONFIG, query_pairs
from .charts import Axis, contour, nice_ticks, powers_of_two
from .comparison import needed_bytes
from .form import STOPS
from .labels import Mark, places
from .views import answer_view

Words = Mapping[str, str]

EXAMPLE = calc.Scenario(
    model="llama-3.1-8b",
    gpu="h100-sxm-80gb",
    task=Task.INFERENCE,
    batch_size=16,
    prompt_length=2048,
    output_length=512,
)
"""The question a first visit shows, filled in."""

BATCHES = STOPS["batch_size"]
MOST_CONTEXTS = 8
TARGETS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
"""Seconds that a token may take: from as fast as one reads at a glance to slower than one reads."""
REMEMBERED_GRIDS = 64
DRAWING_PIXELS = ((270, 240), (460, 270))
"""Width and height of a drawing on a screen of 390 pixels and on the widest, as serve.css makes it."""
MADE_OF = {Holds.WEIGHTS: "parameters", Holds.KV_CACHE: "kv_cache", Holds.ACTIVATIONS: "activations"}
"""In whose colour moved bytes are drawn."""
WHY = ("kv-cache", "traffic-standard", "traffic-flash")
"""The formulas that the page shows."""


def served(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same question about inference: of another task's what inference reads."""
    pairs = list(pairs)
    if ("task", Task.INFERENCE.value) in pairs:
        return pairs
    read = READ_BY_INFERENCE - {"task", "precision", "implementation", "attention"} | {CONFIG}
    return [("task", Task.INFERENCE.value), *(pair for pair in pairs if pair[0] in read)]


def serving_view(scenario: Scenario, words: Words) -> dict[str, Any]:
    """The verdict, and where the time goes."""
    estimate = calc.estimate(scenario)
    view = answer_view(scenario, words)
    why = [formula for formula in formulas(estimate) if formula.key in WHY]
    return view | {"speed": _speed(estimate, words), "why_formulas": why, "tile": _tile(why)}


def _speed(estimate: calc.Estimate, words: Words) -> dict[str, Any] | None:
    time = estimate.time
    if time is None:
        return None
    passes = {"prefill": time.prefill, "decode": time.last_decode}
    shown = {name: each for name, each in passes.items() if each is not None}
    return {
        "facts": list(_facts(time, words)),
        "passes": [_pass(name, each, words) for name, each in shown.items()],
        "prefill_passes": _prefill_passes(estimate, words),
        "reachable": time.reachable,
        "ridge": time.reachable.ridge_flops_per_byte,
    }


def _prefill_passes(estimate: calc.Estimate, words: Words) -> str:
    """Of an engine, which runs its prompts piece by piece."""
    if estimate.engine is None:
        return ""
    tokens = estimate.engine.plan.max_num_batched_tokens or 0
    return words["prefill_passes"].format(passes=f"{estimate.engine.prefill_passes:,}", tokens=f"{tokens:,}")


def _facts(time: InferenceTime, words: Words) -> Iterable[tuple[str, str]]:
    first, last, energy = time.first_decode, time.last_decode, time.joules_per_output_token
    yield words["time_prefill"], format_seconds(time.prefill_seconds)
    if first is not None and last is not None:
        yield words["time_first"], format_seconds(first.seconds)
        yield words["time_last"], format_seconds(last.seconds)
    yield words["time_total"], format_seconds(time.total_seconds)
    if energy is not None:
        yield words["time_energy"], f"{energy:.3g} J"
    if time.ridge_batch_size is not None:
        yield words["time_ridge"], f"{time.ridge_batch_size:,}"


def _pass(name: str, shown: PassTime, words: Words) -> dict[str, Any]:
    most = max(sum(part.bytes_moved.values()) for part in shown.parts)
    return {
        "name": words[f"pass.{name}"],
        "seconds": format_seconds(shown.seconds),
        "bound": words[f"bound.{shown.bound}"],
        "bytes": sum(shown.bytes_moved.values()),
        "num_kernels": shown.num_kernels,
        "rows": [
            {
                "name": words[f"operation.{part.operation}"],
                "seconds": format_seconds(part.seconds),
                "share": 100 * part.seconds / shown.seconds,
                "bound": words[f"bound.{part.bound}"],
                "is_compute": part.bound == "compute",
                "intensity": f"{part.flops_per_byte:,.0f}" if part.flops else "",
                "segments": list(_segments(part.bytes_moved, most)),
                "moved": {holds.value: size for holds, size in part.bytes_moved.items()},
                "bytes": sum(part.bytes_moved.values()),
            }
            for part in shown.parts
        ],
    }


def _segments(moved: Mapping[Holds, int], most: int) -> Iterable[dict[str, Any]]:
    start = 0
    for holds, size in moved.items():
        if size:
            yield {"part": MADE_OF[holds], "x": 100 * start / most, "width": 100 * size / most, "bytes": size}
        start += size


def _tile(why: Sequence[Formula]) -> dict[str, int] | None:
    """FlashAttention's blocks in the on-chip memory of the GPU: algorithm 1, line 1."""
    flash = next((formula for formula in why if formula.key == "traffic-flash"), None)
    if flash is None:
        return None
    elements, head_dim = flash.symbols["M"][1], flash.symbols["d"][1]
    columns = -(-elements // (4 * head_dim))
    return {"sram_bytes": 2 * elements, "columns": columns, "rows": min(columns, head_dim)}


# ---- How many fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Batches and contexts of one question, and what each pair takes."""

    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    memories: Mapping[tuple[int, int], tuple[int, bool | None]]
    """(context, batch) -> bytes of the cache, and whether all of it fits."""
    most: Mapping[int, int | None]
    """Context -> the most sequences that fit; None: not one. Empty where there is no GPU."""


def capacity_view(scenario: Scenario, words: Words) -> dict[str, Any]:
    """The cache by batch and context, and the most sequences that fit by context."""
    answered = calc.estimate(scenario)
    filled = answered.scenario
    output_length = filled.output_length or 0
    sought = scenario.model_copy(
        update={"batch_size": None, "prompt_length": None, "output_length": filled.output_length}
    )
    longest = answered.architecture.max_position_embeddings
    batches = tuple(batch for batch in BATCHES if batch <= (filled.max_num_seqs or batch))
    remembered = cast("Callable[..., Grid]", _remembered_grid)
    grid = (remembered if isinstance(scenario.model, str) else _grid)(sought, longest, batches)
    here = (filled.batch_size or 1, (filled.prompt_length or 0) + output_length)
    return {
        "heat": _heat(grid, scenario, output_length, here, words),
        "concurrency": _concurrency(grid, scenario, output_length, here, words) if grid.most else None,
        **deployments_view(scenario),
    }


def _grid(scenario: Scenario, longest: int, batches: tuple[int, ...]) -> Grid:
    output_length = scenario.output_length or 0
    contexts = [context for context in powers_of_two(2, longest, longest) if context > output_length][-MOST_CONTEXTS:]
    memories: dict[tuple[int, int], tuple[int, bool | None]] = {}
    most: dict[int, int | None] = {}
    for context in contexts:
        with suppress(calc.ConfigError):
            for batch in batches:
                memory = calc.estimate(at(scenario, batch, context)).memory
                memories[context, batch] = (memory.kv_cache_bytes or 0, memory.fits)
            if scenario.gpu is not None:
                most[context] = cast(
                    "int | None", calc.solve(at(scenario, 1, context), maximise=Maximise.BATCH_SIZE).value
                )
    answered = tuple(dict.fromkeys(context for context, _ in memories))
    return Grid(contexts=answered, batches=batches, memories=memories, most=most)


_remembered_grid = lru_cache(maxsize=REMEMBERED_GRIDS)(_grid)


def at(scenario: Scenario, batch_size: int, context: int) -> Scenario:
    """`scenario` with so many sequences, and a prompt that fills `context` with the output."""
    prompt_length = context - (scenario.output_length or 0)
    return scenario.model_copy(update={"batch_size": batch_size, "prompt_length": prompt_length})


def _query(scenario: Scenario, batch_size: int, context: int, output_length: int) -> str:
    asked = scenario.model_copy(update={"output_length": output_length})
    return urlencode(query_pairs(at(asked, batch_size, context)))


def _heat(
    grid: Grid, scenario: Scenario, output_length: int, here: tuple[int, int], words: Words
) -> dict[str, Any] | None:
    if not grid.contexts:
        return None
    width, height = 100 / len(grid.batches), 100 / len(grid.contexts)
    fitting_caches = [cache for cache, fits in grid.memories.values() if fits is not False]
    largest = max(fitting_caches, default=1)
    rows = []
    for row, context in enumerate(grid.contexts):
        for column, batch in enumerate(grid.batches):
            cache, fits = grid.memories[context, batch]
            verdict = {None: "", True: words["fits"], False: words["fits_not"]}[fits]
            text = words["heat_cell"].format(batch=f"{batch:,}", context=f"{context:,}", cache=format_bytes(cache))
            rows.append(
                {
                    "key": f"{row}-{column}",
                    "x": width * column,
                    "y": 100 - height * (row + 1),
                    "cache": cache,
                    "short": _short_gib(cache),
                    "shade": round(min(1.0, cache / largest) ** 0.5, 3),
                    "unfit": fits is False,
                    "is_current": (batch, context) == here,
                    "text": f"{text} {verdict}".strip(),
                    "query": _query(scenario, batch, context, output_length),
                }
            )
    fitting = [sum(grid.memories[context, batch][1] is True for batch in grid.batches) for context in grid.contexts]
    line = contour(fitting, len(grid.batches)) if any(fitting) else []
    lead = "no_gpu" if not grid.most else "some" if any(fitting) else "none"
    return {
        "lead": lead,
        "here": _here(grid, here),
        "rows": rows,
        "width": width,
        "height": height,
        "contour": " ".join(f"{x},{y}" for x, y in line),
        "batches": [(batch, width * (column + 0.5)) for column, batch in enumerate(grid.batches)],
        "contexts": [(_short_count(context), 100 - height * (row + 0.5)) for row, context in enumerate(grid.contexts)],
        "table": [
            (context, [grid.memories[context, batch] for batch in grid.batches]) for context in reversed(grid.contexts)
        ],
    }


def _here(grid: Grid, here: tuple[int, int]) -> tuple[float, float] | None:
    """Where the question itself lies, between the cells; None beyond them, and where it is one of them."""
    if here[0] in grid.batches and here[1] in grid.contexts:
        return None
    width, height = 100 / len(grid.batches), 100 / len(grid.contexts)
    x = width * (math.log2(here[0] / grid.batches[0]) + 0.5)
    y = 100 - height * (math.log2(here[1] / grid.contexts[0]) + 0.5)
    return (round(x, 2), round(y, 2)) if min(x, y) >= 0 and max(x, y) <= 100 else None


def _short_gib(num_bytes: int) -> str:
    gib = num_bytes / 2**30
    return f"{gib:.0f}" if gib >= 9.95 else f"{gib:.1f}"


def _short_count(count: int) -> str:
    return f"{count // 1024}K" if count >= 1024 and count % 1024 == 0 else f"{count:,}"


def _concurrency(
    grid: Grid, scenario: Scenario, output_length: int, here: tuple[int, int], words: Words
) -> dict[str, Any] | None:
    found = {context: most for context, most in grid.most.items() if most is not None}
    if not found:
        return None
    x = Axis(min(found), max(found), is_logarithmic=True)
    y = Axis(1, max(found.values()), is_logarithmic=True, is_upward=True)
    rows = [
        {
            "x": x(context),
            "y": y(most),
            "name": f"{most:,}",
            "text": words["concurrency_point"].format(context=f"{context:,}", most=f"{most:,}"),
            "query": _query(scenario, most, context, output_length),
            "is_current": (most, context) == here,
        }
        for context, most in found.items()
    ]
    x_ticks = [(_short_count(context), x(context)) for context in found]
    y_ticks = [(f"{tick:,}", y(tick)) for tick in powers_of_two(1, max(found.values()))]
    return _chart(rows, x_ticks, y_ticks) | {"table": list(grid.most.items())}


# ---- Several GPUs


def deployments_view(scenario: Scenario) -> dict[str, Any]:
    """The same sequences on eight GPUs, in every way; none where several are refused."""
    ways: tuple[calc.Deployment, ...] = ()
    with suppress(calc.ConfigError):
        ways = calc.deployments(scenario)
    return {
        "deployments": [
            {
                "ways": f"{way.num_replicas} × {way.tensor_parallel}",
                "batch": way.batch_size,
                "needed": way.estimate.memory.peak_allocated_bytes,
                "fits": way.estimate.memory.fits,
                "most": way.most_sequences,
                "prefill": _known(way.prefill_seconds),
                "token": _known(way.seconds_per_output_token),
                "links": _known(way.all_reduce_seconds_per_token) if way.tensor_parallel > 1 else "–",
                "rate": format_rate(way.output_tokens_per_second) if way.output_tokens_per_second else "",
            }
            for way in ways
        ]
    }


def _known(seconds: float | None) -> str:
    return "" if seconds is None else format_seconds(seconds)


# ---- What a larger batch gains


def throughput_view(scenario: Scenario, words: Words) -> dict[str, Any]:
    """Seconds a token against tokens a second: each batch up to the first that does not fit."""
    own = calc.estimate(scenario)
    if own.time is None or own.time.output_tokens_per_second is None:
        return {"throughput": None, "latencies": []}
    own_batch = own.scenario.batch_size or 1
    answers = dict(_tried(scenario, sorted({*BATCHES, own_batch})))
    rates = {batch: answer.time for batch, answer in answers.items()}
    times = {batch: time for batch, time in rates.items() if time is not None}
    tokens = {batch: time.seconds_per_output_token or 0.0 for batch, time in times.items()}
    per_second = {batch: time.output_tokens_per_second or 0.0 for batch, time in times.items()}
    slowest, most = 1e3 * max(tokens.values()), max(per_second.values())
    x, y = Axis(0, slowest), Axis(0, most, is_upward=True)
    rows = []
    for batch, time in times.items():
        memory, energy = answers[batch].memory, time.joules_per_output_token
        numbers = words["throughput_point"].format(
            batch=f"{batch:,}", token=format_seconds(tokens[batch]), rate=format_rate(per_second[batch])
        )
        verdict = "" if memory.fits is None else words["fits" if memory.fits else "fits_not"]
        rows.append(
            {
                "x": x(1e3 * tokens[batch]),
                "y": y(per_second[batch]),
                "name": f"{batch:,}",
                "text": f"{numbers} {verdict}".strip(),
                "query": urlencode(query_pairs(scenario.model_copy(update={"batch_size": batch}))),
                "is_current": batch == own_batch,
                "unfit": memory.fits is False,
                "token": format_seconds(tokens[batch]),
                "rate": format_rate(per_second[batch]),
                "energy": None if energy is None else f"{energy:.3g}",
                "needed": format_gib((memory.usable_bytes or 0) - (memory.headroom_bytes or 0)),
                "fits": memory.fits,
            }
        )
    x_ticks = [(f"{tick:g}", x(tick)) for tick in nice_ticks(slowest)]
    chart = _chart(rows, x_ticks, [(f"{tick:,.0f}", y(tick)) for tick in nice_ticks(most)])
    return {"throughput": chart, "latencies": list(_latencies(scenario))}


def _latencies(scenario: Scenario) -> Iterator[dict[str, Any]]:
    """The most sequences with which a token takes no longer than each of TARGETS, until memory is what limits them."""
    for seconds in TARGETS:
        found = calc.solve(scenario, maximise=Maximise.BATCH_SIZE, max_seconds_per_token=seconds)
        time = found.estimate.time
        known = found.value is not None and time is not None
        yield {
            "target": format_seconds(seconds),
            "batch": found.value,
            "query": urlencode(query_pairs(scenario.model_copy(update={"batch_size": found.value}))) if known else None,
            "token": _known(time.seconds_per_output_token) if known and time else "",
            "rate": format_rate(time.output_tokens_per_second or 0) if known and time else "",
            "needed": needed_bytes(found.estimate) if known else None,
            "limit": found.limit,
        }
        if found.limit is not Limit.LATENCY:
            break


def _tried(scenario: Scenario, batches: Iterable[int]) -> Iterable[tuple[int, calc.Estimate]]:
    """Up to the first that does not fit, and the scenario's own."""
    is_full = False
    for batch in batches:
        if is_full and batch != scenario.batch_size:
            continue
        answer = calc.estimate(scenario.model_copy(update={"batch_size": batch}))
        is_full = is_full or answer.memory.fits is False
        yield batch, answer


Ticks = Sequence[tuple[str, float]]


def _chart(rows: Sequence[dict[str, Any]], x_ticks: Ticks, y_ticks: Ticks) -> dict[str, Any]:
    """Marks that are links, joined by a line, those that have room for it with their name."""
    marks = [Mark(row["x"], row["y"], row["name"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: not rows[index]["is_current"])
    labels = places(marks, [], order, DRAWING_PIXELS)
    return {
        "rows": [{"unfit": False, **row, "key": index, "label": labels.get(index)} for index, row in enumerate(rows)],
        "line": " ".join(f"{mark.x},{mark.y}" for mark in marks),
        "x_ticks": x_ticks,
        "y_ticks": y_ticks,
    }
