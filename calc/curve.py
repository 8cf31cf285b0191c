"""The memory curve: points of the timeline, ready to be drawn."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from .timeline import Phase, Span, Timeline

MOST_PARTS = 128
"""How many of a run's equal layers are drawn; more are sampled evenly, the first and the last among them."""


class Point(NamedTuple):
    """Allocated bytes at one moment of the step. A tuple, because a step has hundreds."""

    phase: Phase
    label: str
    layer: int | None
    allocated_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "label": self.label,
            "layer": self.layer,
            "allocated_bytes": self.allocated_bytes,
        }


def curve(timeline: Timeline) -> tuple[Point, ...]:
    """For each part of the step its end, and its highest point where that is above both ends, in the step's order.

    Equal parts that only rise or only fall are one straight line: the last one's end draws it.
    """
    points = [Point(phase=Phase.FORWARD, label="start", layer=None, allocated_bytes=timeline.base_bytes)]
    for span in timeline.spans:
        if span.stretch.program.steps:
            points += _points(span)
    return tuple(points)


def _points(span: Span) -> Iterator[Point]:
    stretch, net_bytes, highest_bytes = span.stretch, span.net_bytes, span.highest_bytes
    phase, label = stretch.phase, stretch.label
    has_summit = highest_bytes > max(0, net_bytes)
    for part in _sampled(stretch.count) if has_summit else (stretch.count - 1,):
        layer = None if stretch.first_layer is None else stretch.first_layer + part * stretch.layer_step
        start = span.start_bytes + part * net_bytes
        if has_summit:
            yield Point(phase, label, layer, start + highest_bytes)
        yield Point(phase, label, layer, start + net_bytes)


def _sampled(count: int) -> list[int]:
    if count <= MOST_PARTS:
        return list(range(count))
    return sorted({index * (count - 1) // (MOST_PARTS - 1) for index in range(MOST_PARTS)})
