"""The memory curve: points of the timeline, ready to be drawn."""

from collections.abc import Sequence
from typing import TypedDict

from .timeline import Phase, Span, Timeline

MOST_PARTS = 128
"""How many of a run's equal layers are drawn; more are sampled evenly, the first and the last among them."""


class Point(TypedDict):
    """Allocated bytes at one moment of the step. As JSON has it, because a step has hundreds."""

    phase: Phase
    label: str
    layer: int | None
    allocated_bytes: int


def curve(timeline: Timeline) -> list[Point]:
    """For each part of the step its end, and its highest point where that is above both ends, in the step's order.

    Equal parts that only rise or only fall are one straight line: the last one's end draws it.
    """
    points: list[Point] = [
        {"phase": timeline.phases[0], "label": "start", "layer": None, "allocated_bytes": timeline.base_bytes}
    ]
    for span in timeline.spans:
        if span.stretch.program.steps and span.stretch.is_drawn:
            points += _points(span)
    return points


def _points(span: Span) -> list[Point]:
    stretch, net_bytes, highest_bytes = span.stretch, span.net_bytes, span.highest_bytes
    phase, label, first_layer, layer_step = stretch.phase, stretch.label, stretch.first_layer, stretch.layer_step
    has_summit = highest_bytes > max(0, net_bytes)
    seen_bytes = (highest_bytes, net_bytes) if has_summit else (net_bytes,)
    return [
        {
            "phase": phase,
            "label": label,
            "layer": None if first_layer is None else first_layer + part * layer_step,
            "allocated_bytes": span.start_bytes + part * net_bytes + above_bytes,
        }
        for part in (_sampled(stretch.times) if has_summit else (stretch.times - 1,))
        for above_bytes in seen_bytes
    ]


def _sampled(count: int) -> Sequence[int]:
    if count <= MOST_PARTS:
        return range(count)
    return sorted({index * (count - 1) // (MOST_PARTS - 1) for index in range(MOST_PARTS)})
