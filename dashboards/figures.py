"""Figures as plain data: where each mark goes, in percent of the drawing, and what it says.

Pure functions of an Estimate's JSON. The templates draw them as SVG in the palette's colours: they follow the theme,
need no script, and keep a strict Content-Security-Policy.
"""

import math
from collections.abc import Iterator
from itertools import accumulate, groupby
from typing import Any

from .palette import TEXTURES

PARTS = tuple(TEXTURES)
"""The parts of the peak in the order they are stacked."""

MARGIN = 1.04
"""Room beyond the largest of the capacity and the need, so that the capacity line is seen as a line."""

LABEL_MARGIN = 1.16
"""Room above the curve for the label of its peak."""

SMALLEST_LABELLED_PERCENT = 13
"""A narrower segment has no room for its name; the legend has it."""

SMALLEST_VISIBLE_PERCENT = 0.02
"""A narrower segment is not a pixel wide; the table has it, the legend not."""

ROOM_IN_SIGHT = 2.5
"""The curve shows the line of the GPU's room unless it lies further above the peak than this factor."""

LABEL_PERCENT = (8, 14)
"""How wide and how high a label at a peak is, in percent of the drawing."""

MOST_TICKS = 5


PHASE_WEIGHTS = {"forward": 3, "backward": 5, "optimizer": 2, "prefill": 5, "decode": 5}
"""How much of the curve's width a phase takes: its order of operations is drawn, not its time."""


def outside_tensors(memory: dict[str, Any]) -> dict[str, int]:
    """What the libraries and the driver hold beside the step's tensors; nothing where there is no GPU."""
    return {
        "library_workspace": memory["library_workspace_bytes"] or 0,
        "context": memory["assumed_context_bytes"] or 0,
    }


def parts(memory: dict[str, Any]) -> dict[str, int]:
    """Bytes at the peak by part, in stacking order; nothing that is zero."""
    sizes = memory["at_peak"] | outside_tensors(memory)
    return {part: sizes[part] for part in PARTS if sizes[part]}


def bar(memory: dict[str, Any], scale: float | None = None) -> dict[str, Any]:
    """The stacked bar: segments, what is free or missing, and the capacity line. `scale` are the bytes of its whole
    width; bars that share one can be compared."""
    sizes = parts(memory)
    needed, capacity = sum(sizes.values()), memory["usable_bytes"]
    scale = scale or bar_scale(memory)
    start = 0
    segments = []
    for part, size in sizes.items():
        width = 100 * size / scale
        segments.append(
            {
                "part": part,
                "bytes": size,
                "x": 100 * start / scale,
                "width": width,
                "texture": TEXTURES[part],
                "is_visible": width >= SMALLEST_VISIBLE_PERCENT,
                "is_labelled": width >= SMALLEST_LABELLED_PERCENT,
            }
        )
        start += size
    line = None if capacity is None else {"bytes": capacity, "x": 100 * capacity / scale}
    return {"segments": segments, "needed_bytes": needed, "capacity": line}


def bar_scale(memory: dict[str, Any]) -> float:
    """The bytes that a bar of its own is wide."""
    return max(sum(parts(memory).values()), (memory["usable_bytes"] or 0) * MARGIN)


def curve(memory: dict[str, Any], top: float | None = None) -> dict[str, Any]:
    """Allocated bytes through the step: the line, its phases, ticks, the peak and the room there is for tensors. `top`
    are the bytes of its whole height; curves that share one can be compared."""
    points, shown_room = memory["timeline"], _room_in_sight(memory)
    top = top or curve_top(memory)
    groups = [list(group) for _, group in groupby(points, key=lambda point: point["phase"])]
    phases = _phases(groups)
    positions = list(_positions(groups, phases))
    heights = [100 - 100 * point["allocated_bytes"] / top for point in points]
    peak = max(range(len(points)), key=lambda index: points[index]["allocated_bytes"])
    line = " ".join(f"{x:.2f},{y:.2f}" for x, y in zip(positions, heights, strict=True))
    return {
        "line": line,
        "area": f"0,100 {line} 100,100",
        "points": [
            {**point, "x": round(x, 2), "y": round(y, 2)}
            for point, x, y in zip(points, positions, heights, strict=True)
        ],
        "phases": phases,
        "ticks": [{"bytes": tick, "y": 100 - 100 * tick / top} for tick in ticks(top)],
        "peak": {"x": positions[peak], "y": heights[peak], **points[peak]},
        "room": None if shown_room is None else {"bytes": shown_room, "y": 100 - 100 * shown_room / top},
    }


def curve_top(memory: dict[str, Any]) -> float:
    """The bytes that a curve of its own is high."""
    return LABEL_MARGIN * max(memory["peak_allocated_bytes"], _room_in_sight(memory) or 0)


def overlay(memories: list[dict[str, Any]]) -> dict[str, Any]:
    """Several curves on one scale. Phases are marked where all have the same, the room where all have the same room."""
    top = max(map(curve_top, memories))
    curves = [curve(memory, top) for memory in memories]
    first = curves[0]
    return {
        "lines": [drawn["line"] for drawn in curves],
        "peaks": _labelled_peaks([drawn["peak"] for drawn in curves]),
        "ticks": first["ticks"],
        "phases": first["phases"] if all(drawn["phases"] == first["phases"] for drawn in curves) else [],
        "room": first["room"] if all(drawn["room"] == first["room"] for drawn in curves) else None,
    }


def _labelled_peaks(peaks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each curve's peak; those too near each other to be labelled apart share the label of the first of them."""
    placed: list[dict[str, Any]] = []
    for index, peak in enumerate(peaks):
        near = (other for other in placed if other["labels"] and _is_near(other, peak))
        beside = next(near, None)
        if beside is not None:
            beside["labels"].append(index)
        placed.append({"x": peak["x"], "y": peak["y"], "labels": [index] if beside is None else []})
    return placed


def _is_near(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return abs(one["x"] - other["x"]) < LABEL_PERCENT[0] and abs(one["y"] - other["y"]) < LABEL_PERCENT[1]


def _room_in_sight(memory: dict[str, Any]) -> int | None:
    room = _room_for_tensors(memory)
    return room if room is not None and room <= ROOM_IN_SIGHT * memory["peak_allocated_bytes"] else None


def _room_for_tensors(memory: dict[str, Any]) -> int | None:
    capacity = memory["usable_bytes"]
    return None if capacity is None else max(0, capacity - sum(outside_tensors(memory).values()))


def _phases(groups: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each phase with the stretch of the drawing it takes."""
    weights = [PHASE_WEIGHTS[group[0]["phase"]] for group in groups]
    starts = accumulate(weights, initial=0)
    unit = 100 / sum(weights)
    return [
        {"name": group[0]["phase"], "x": start * unit, "width": weight * unit}
        for group, weight, start in zip(groups, weights, starts, strict=False)
    ]


def _positions(groups: list[list[dict[str, Any]]], phases: list[dict[str, Any]]) -> Iterator[float]:
    """Where each point lies: evenly through its phase; the step's last point closes the drawing."""
    for group, phase in zip(groups, phases, strict=True):
        gaps = len(group) - (1 if group is groups[-1] and len(group) > 1 else 0)
        yield from (phase["x"] + phase["width"] * index / gaps for index in range(len(group)))


def ticks(top_bytes: float) -> list[int]:
    """At most MOST_TICKS multiples of a power of two, up to `top_bytes`, zero left out."""
    step = 2 ** math.ceil(math.log2(top_bytes / MOST_TICKS))
    return list(range(step, int(top_bytes) + 1, step))
