"""Axes of figures in percent of the drawing, and the line between a grid's cells that fit and the others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

EDGE_PERCENT = 6
"""From the drawing's edges to the outermost marks."""
MOST_TICKS = 6
NICE_STEPS = (1, 2, 5)
"""Times a power of ten."""

Spot = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """Numbers from `low` to `high` along one side of a drawing."""

    low: float
    high: float
    is_logarithmic: bool = False
    is_upward: bool = False
    """The larger numbers at the drawing's top, where percents are small."""

    def __call__(self, number: float) -> float:
        """Where `number` is, in percent."""
        low, high, here = (self._scaled(each) for each in (self.low, self.high, number))
        share = (here - low) / (high - low) if high > low else 0.5
        percent = EDGE_PERCENT + (100 - 2 * EDGE_PERCENT) * share
        return round(100 - percent if self.is_upward else percent, 2)

    def _scaled(self, number: float) -> float:
        return math.log2(number) if self.is_logarithmic else number


def nice_ticks(high: float) -> list[float]:
    """From zero on, at most MOST_TICKS steps of 1, 2 or 5 times a power of ten, up to `high`."""
    power = 10.0 ** math.floor(math.log10(high / MOST_TICKS))
    step = next(power * nice for nice in (*NICE_STEPS, 10) if high / (power * nice) <= MOST_TICKS)
    return [step * count for count in range(int(high / step) + 1)]


def powers_of_two(low: float, high: float, most: int = MOST_TICKS) -> list[int]:
    """Those from `low` to `high`, or every second, third, ... of them, so that there are at most `most`."""
    powers = [2**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    return powers[:: max(1, math.ceil(len(powers) / most))]


def contour(fitting: Sequence[int], num_columns: int) -> list[Spot]:
    """The line to the right of each row's first `fitting` cells, from the lowest row to the highest, in percent."""
    height = 100 / len(fitting)
    spots: list[Spot] = []
    for row, count in enumerate(fitting):
        x = 100 * count / num_columns
        spots += [(x, 100 - height * row), (x, 100 - height * (row + 1))]
    return [(round(x, 2), round(y, 2)) for x, y in spots]
