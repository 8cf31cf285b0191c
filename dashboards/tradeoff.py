"""Recomputation as a figure: what each way keeps for backward against what it computes again."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import calc
from calc.scenario import Recompute, Task
from calc.units import format_bytes, format_gib

from .address import query_pairs
from .figures import ticks
from .labels import Mark, places

Words = Mapping[str, str]

EDGE_PERCENT = 5
"""From the drawing's edges to the place of nothing and of the most."""

DRAWING_PIXELS = ((270, 272), (560, 272))
"""Width and height of the drawing on a screen of 390 pixels and on the widest, as page.css makes it."""

FLOPS_STEPS_PERCENT = (1, 2, 5, 10, 20, 50)
MOST_FLOPS_TICKS = 4


def tradeoff_view(scenario: calc.Scenario, words: Words) -> dict[str, Any]:
    """Everything the figure's template needs for `scenario`, whose own way is one of those drawn; of training only."""
    if scenario.task is not Task.TRAINING:
        return {"tradeoff": None, "task": scenario.task}
    ways = calc.recompute_tradeoffs(scenario)
    if scenario not in [way.scenario for way in ways]:
        own = calc.Tradeoff(scenario=scenario, estimate=calc.estimate(scenario))
        ways = tuple(sorted((*ways, own), key=lambda way: (way.recompute_flops, -way.kept_bytes)))
    return {"tradeoff": figure(ways, scenario, words)}


def added_percent(way: calc.Tradeoff) -> float:
    """What is computed again, of the step's FLOPs without it."""
    return 100 * way.recompute_flops / (way.estimate.flops.total - way.recompute_flops)


def figure(ways: Sequence[calc.Tradeoff], scenario: calc.Scenario, words: Words) -> dict[str, Any]:
    """Where each way's mark goes, in percent of the drawing, what it says, and the line along the ways that none
    beats."""
    most_bytes, most_percent = max(way.kept_bytes for way in ways), max(map(added_percent, ways))
    steps = flops_ticks(most_percent)

    def x(percent: float) -> float:
        return round(EDGE_PERCENT + (100 - 2 * EDGE_PERCENT) * percent / max(most_percent, steps[-1]), 2)

    def y(num_bytes: int) -> float:
        return round(100 - (100 - EDGE_PERCENT) * num_bytes / most_bytes, 2)

    spots = [(x(added_percent(way)), y(way.kept_bytes)) for way in ways]
    rows = [_row(way, way.scenario == scenario, words) for way in ways]
    marks = [Mark(*spot, row["name"]) for spot, row in zip(spots, rows, strict=True)]
    order = sorted(range(len(ways)), key=lambda index: _rank(ways[index], rows[index]["is_current"]))
    frontier = list(_stairs([spots[index] for index in unbeaten(ways)]))
    labels = places(marks, frontier, order, DRAWING_PIXELS)
    return {
        "rows": [
            row | {"key": key, "x": spot[0], "y": spot[1], "label": labels.get(key)}
            for key, (row, spot) in enumerate(zip(rows, spots, strict=True))
        ],
        "line": " ".join(f"{x},{y}" for x, y in frontier),
        "x_ticks": [(f"+{step} %" if step else "0 %", x(step)) for step in steps],
        "y_ticks": [(format_bytes(tick).replace(".0 ", " "), y(tick)) for tick in ticks(most_bytes)],
    }


def _row(way: calc.Tradeoff, is_current: bool, words: Words) -> dict[str, Any]:
    memory = way.estimate.memory
    verdict = {None: "", True: words["fits"], False: words["fits_not"]}[memory.fits]
    name, added = way_name(way.scenario, words), f"+{added_percent(way):.1f} %"
    numbers = words["tradeoff_numbers"].format(
        kept=format_bytes(way.kept_bytes), added=added, peak=format_gib(memory.peak_allocated_bytes)
    )
    return {
        "name": name,
        "text": f"{name}: {numbers} {verdict}".strip(),
        "query": urlencode(query_pairs(way.scenario)),
        "is_current": is_current,
        "kept": way.kept_bytes,
        "added": added,
        "peak": memory.peak_allocated_bytes,
        "fits": memory.fits,
        "unfit": memory.fits is False,
    }


def way_name(scenario: calc.Scenario, words: Words) -> str:
    """`none`, `selective`, `full`, `full, to the host`, `1 layer in 4`, `groups of 5`."""
    name = words[f"recompute.{scenario.recompute}"]
    if scenario.recompute_group_size > 1:
        name = words["way.group"].format(count=scenario.recompute_group_size)
    elif scenario.recompute_interval > 1:
        interval = words["way.interval"].format(count=scenario.recompute_interval)
        name = interval if scenario.recompute is Recompute.FULL else f"{name}, {interval}"
    return words["way.offload"].format(way=name) if scenario.recompute_offload else name


def _rank(way: calc.Tradeoff, is_current: bool) -> tuple[bool, bool, int]:
    """Whose name is written first where there is not room for all."""
    is_plain = way.scenario.recompute_interval == way.scenario.recompute_group_size == 1
    return not is_current, not is_plain, way.recompute_flops


def unbeaten(ways: Sequence[calc.Tradeoff]) -> list[int]:
    """The ways, by their FLOPs, than which none keeps less for as many FLOPs or fewer."""
    by_flops = sorted(range(len(ways)), key=lambda index: (ways[index].recompute_flops, ways[index].kept_bytes))
    found: list[int] = []
    for index in by_flops:
        if not found or ways[index].kept_bytes < ways[found[-1]].kept_bytes:
            found.append(index)
    return found


def _stairs(spots: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Level from each spot to the next one's place, then down to it."""
    for index, (x, y) in enumerate(spots):
        if index:
            yield x, spots[index - 1][1]
        yield x, y


def flops_ticks(most_percent: float) -> list[int]:
    """From zero on, at most MOST_FLOPS_TICKS after it."""
    step = next(
        (step for step in FLOPS_STEPS_PERCENT if step * MOST_FLOPS_TICKS >= most_percent), FLOPS_STEPS_PERCENT[-1]
    )
    return list(range(0, int(most_percent) + 1, step))
