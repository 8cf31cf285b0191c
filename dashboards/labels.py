"""Which of a figure's marks have room for their names, and on which side of the mark."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple
from unicodedata import east_asian_width

TEXT_PIXELS, WIDE_TEXT_PIXELS, LINE_PIXELS = 10, 15, 18
"""Width of a letter in semibold and of a Chinese character in the page's type, height of its lines; rather too much."""

MARK_PIXELS = 7
"""From a mark's centre to its edge."""


class Mark(NamedTuple):
    """Where a mark is, in percent of the drawing, and its name."""

    x: float
    y: float
    name: str


class Place(NamedTuple):
    """Where a name is written: SVG's text-anchor and the distance from the mark's centre in pixels."""

    anchor: str
    dx: int
    dy: int


PLACES = (
    Place("start", 8, -17),
    Place("start", 8, 17),
    Place("end", -12, 0),
    Place("end", -8, 17),
    Place("start", 12, 0),
    Place("end", -8, -17),
    Place("middle", 0, -18),
    Place("middle", 0, 18),
)
"""The better ones first."""


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: "Box") -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.bottom <= other.top or other.bottom <= self.top)


def places(
    marks: Sequence[Mark], line: Sequence[tuple[float, float]], order: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> dict[int, Place]:
    """Index of a mark -> where its name goes, free of other names, of marks and of the `line`, within the drawing.

    The line is level or upright from spot to spot. The marks are tried in `order`; those without room have no place.
    The drawing has any of `sizes`, in pixels.
    """
    found: dict[int, Place] = {}
    taken = {size: [_mark_box(mark, size) for mark in marks] + _line_boxes(line, size) for size in sizes}
    for index in order:
        mark = marks[index]
        for place in PLACES:
            boxes = {size: _name_box(mark, place, size) for size in sizes}
            if all(_is_free(boxes[size], taken[size], size) for size in sizes):
                found[index] = place
                for size in sizes:
                    taken[size].append(boxes[size])
                break
    return found


def _is_free(box: Box, taken: Sequence[Box], size: tuple[int, int]) -> bool:
    width, height = size
    is_within = min(box.left, box.top) >= 0 and box.right <= width and box.bottom <= height
    return is_within and not any(box.touches(other) for other in taken)


def _mark_box(mark: Mark, size: tuple[int, int]) -> Box:
    x, y = _pixels(mark.x, mark.y, size)
    return Box(x - MARK_PIXELS, y - MARK_PIXELS, x + MARK_PIXELS, y + MARK_PIXELS)


def _name_box(mark: Mark, place: Place, size: tuple[int, int]) -> Box:
    x, y = _pixels(mark.x, mark.y, size)
    width = text_pixels(mark.name)
    left = x + place.dx - {"start": 0, "middle": width / 2, "end": width}[place.anchor]
    top = y + place.dy - LINE_PIXELS / 2
    return Box(left, top, left + width, top + LINE_PIXELS)


def _line_boxes(line: Sequence[tuple[float, float]], size: tuple[int, int]) -> list[Box]:
    spots = [_pixels(x, y, size) for x, y in line]
    return [
        Box(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)
        for (x0, y0), (x1, y1) in pairwise(spots)
    ]


def _pixels(x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
    return x * size[0] / 100, y * size[1] / 100


def text_pixels(text: str) -> int:
    """How wide `text` is at most."""
    return sum(WIDE_TEXT_PIXELS if east_asian_width(letter) in "WF" else TEXT_PIXELS for letter in text)
