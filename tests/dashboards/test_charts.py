"""Axes in percent, and the line between cells that fit and others."""

import pytest

from dashboards.charts import EDGE_PERCENT, Axis, contour, nice_ticks, powers_of_two


def test_an_axis_goes_from_edge_to_edge():
    axis, upward = Axis(0, 80), Axis(0, 80, is_upward=True)
    assert (axis(0), axis(40), axis(80)) == (EDGE_PERCENT, 50, 100 - EDGE_PERCENT)
    assert (upward(0), upward(40), upward(80)) == (100 - EDGE_PERCENT, 50, EDGE_PERCENT)


def test_doublings_are_equally_far_apart_on_a_logarithmic_axis():
    axis = Axis(1, 16, is_logarithmic=True)
    assert axis(2) - axis(1) == pytest.approx(axis(16) - axis(8), abs=0.02)
    assert Axis(5, 5)(5) == 50


@pytest.mark.parametrize(
    ("high", "ticks"),
    [(94.6, [0, 20, 40, 60, 80]), (2707, [0, 500, 1000, 1500, 2000, 2500]), (6, [0, 1, 2, 3, 4, 5, 6]), (0.7, None)],
)
def test_ticks_are_nice(high: float, ticks: list[float] | None):
    found = nice_ticks(high)
    assert found == (ticks or pytest.approx([0, 0.2, 0.4, 0.6]))


def test_powers_of_two():
    assert powers_of_two(1, 501) == [1, 4, 16, 64, 256]
    assert powers_of_two(3, 20, most=20) == [4, 8, 16]


def test_the_contour_is_right_of_what_fits():
    assert contour([3, 1], 4) == [(75, 100), (75, 50), (25, 50), (25, 0)]
