"""Predicted against recorded bytes as plain data: where each record's mark goes, in percent of the drawing.

Both axes are one logarithmic scale, so that equal is the diagonal; below it lie the relative errors on a linear scale.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_TICKS = 4
"""As many labels as a narrow screen has room for."""

ERROR_MARGIN = 1.2
"""Room beyond the largest of the errors and the bounds."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One record's bytes; `kind` and `holdout` decide its shape."""

    key: str
    kind: str
    holdout: bool
    recorded: int
    estimated: int

    @property
    def relative_error(self) -> float:
        """(estimated − recorded) / recorded."""
        return (self.estimated - self.recorded) / self.recorded


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A logarithmic axis from one power of two to another."""

    low: int
    high: int

    def percent(self, num_bytes: int) -> float:
        return 100 * (math.log2(num_bytes) - self.low) / (self.high - self.low)

    def ticks(self) -> list[int]:
        """At most MOST_TICKS powers of two, evenly apart."""
        step = math.ceil((self.high - self.low + 1) / MOST_TICKS)
        return [2**exponent for exponent in range(self.low, self.high + 1, step)]


def scale_of(marks: Sequence[Mark]) -> Scale:
    """The powers of two around all bytes."""
    sizes = [size for mark in marks for size in (mark.recorded, mark.estimated)]
    low = math.floor(math.log2(min(sizes)))
    return Scale(low=low, high=max(low + 1, math.ceil(math.log2(max(sizes)))))


def scatter(marks: Sequence[Mark], bounds: Mapping[str, float]) -> dict[str, Any]:
    """The drawing: marks from small to large, ticks, and the strip of errors with each kind's bound."""
    scale = scale_of(marks)
    largest = ERROR_MARGIN * max(*bounds.values(), *(abs(mark.relative_error) for mark in marks))
    return {
        "marks": [
            {
                "mark": mark,
                "x": round(scale.percent(mark.recorded), 2),
                "y": round(100 - scale.percent(mark.estimated), 2),
                "error_y": round(_height(mark.relative_error, largest), 2),
            }
            for mark in sorted(marks, key=lambda mark: mark.recorded)
        ],
        "ticks": [{"bytes": tick, "percent": round(scale.percent(tick), 2)} for tick in scale.ticks()],
        "bounds": [
            {"text": f"{100 * bound:g} %", "above": _height(bound, largest), "below": _height(-bound, largest)}
            for bound in sorted(set(bounds.values()))
        ],
    }


def _height(error: float, largest: float) -> float:
    return 50 - 50 * error / largest
