import pytest

from dashboards.scatter import MOST_TICKS, Mark, scale_of, scatter

MIB, GIB = 2**20, 2**30
BOUNDS = {"trace": 0.01, "measurement": 0.02}


def mark(recorded: int, estimated: int, kind: str = "trace", holdout: bool = False) -> Mark:
    key = f"{recorded}-{estimated}"
    return Mark(key=key, kind=kind, holdout=holdout, recorded=recorded, estimated=estimated)


def test_equal_lies_on_the_diagonal_and_twice_as_much_one_octave_above_it():
    drawn = scatter([mark(GIB, GIB), mark(2 * GIB, 4 * GIB), mark(16 * GIB, 16 * GIB)], BOUNDS)
    # 1 to 16 GiB are four octaves of 25 % each; y counts from the top.
    assert [(each["x"], each["y"]) for each in drawn["marks"]] == [(0, 100), (25, 50), (100, 0)]


def test_too_low_is_below_the_line_of_no_error():
    drawn = scatter([mark(1000 * MIB, 990 * MIB), mark(1100 * MIB, 1122 * MIB)], BOUNDS)
    low, high = drawn["marks"]
    # The largest of errors and bounds, 2 %, and a fifth: 1.2 × 2 % is half the strip.
    assert low["error_y"] == pytest.approx(50 + 50 * 0.01 / 0.024, abs=0.01)
    assert high["error_y"] == pytest.approx(50 - 50 * 0.02 / 0.024, abs=0.01)
    assert [bound["text"] for bound in drawn["bounds"]] == ["1 %", "2 %"]
    assert drawn["bounds"][1]["above"] == pytest.approx(high["error_y"], abs=0.01)


def test_an_error_beyond_the_bounds_stays_in_the_drawing():
    drawn = scatter([mark(GIB, 3 * GIB), mark(GIB, GIB)], BOUNDS)
    for each in drawn["marks"]:
        assert 0 < each["error_y"] < 100
        assert 0 <= each["y"] <= 100


def test_marks_go_from_small_to_large():
    drawn = scatter([mark(4 * GIB, 4 * GIB), mark(GIB, GIB), mark(2 * GIB, 2 * GIB)], BOUNDS)
    assert [each["mark"].recorded for each in drawn["marks"]] == [GIB, 2 * GIB, 4 * GIB]


@pytest.mark.parametrize("largest", [GIB, GIB + 1, 3 * GIB, 300 * GIB, 2**47])
def test_ticks_are_few_powers_of_two_within_the_drawing(largest):
    scale = scale_of([mark(GIB, GIB), mark(largest, largest)])
    ticks = scale.ticks()
    assert 1 < len(ticks) <= MOST_TICKS
    assert all(tick.bit_count() == 1 and 0 <= scale.percent(tick) <= 100 for tick in ticks)
    assert scale.percent(largest) <= 100
