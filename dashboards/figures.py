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

MOST_TICKS = 5


PHASE_WEIGHTS = {"forward": 3, "backward": 5, "optimizer": 2}
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


def bar(memory: dict[str, Any]) -> dict[str, Any]:
    """The stacked bar: segments, what is free or missing, and the capacity line."""
    sizes = parts(memory)
    needed, capacity = sum(sizes.values()), memory["gpu_memory_bytes"]
    scale = max(needed, (capacity or 0) * MARGIN)
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


def curve(memory: dict[str, Any]) -> dict[str, Any]:
    """Allocated bytes through the step: the line, its phases, ticks, the peak and the room there is for tensors."""
    points, peak_bytes = memory["timeline"], memory["peak_allocated_bytes"]
    room = _room_for_tensors(memory)
    shown_room = room if room is not None and room <= ROOM_IN_SIGHT * peak_bytes else None
    top = LABEL_MARGIN * max(peak_bytes, shown_room or 0)
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
        "ticks": [{"bytes": tick, "y": 100 - 100 * tick / top} for tick in _ticks(top)],
        "peak": {"x": positions[peak], "y": heights[peak], **points[peak]},
        "room": None if shown_room is None else {"bytes": shown_room, "y": 100 - 100 * shown_room / top},
    }


def _room_for_tensors(memory: dict[str, Any]) -> int | None:
    capacity = memory["gpu_memory_bytes"]
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


def _ticks(top_bytes: float) -> list[int]:
    """At most MOST_TICKS multiples of a power of two, up to `top_bytes`, zero left out."""
    step = 2 ** math.ceil(math.log2(top_bytes / MOST_TICKS))
    return list(range(step, int(top_bytes) + 1, step))
