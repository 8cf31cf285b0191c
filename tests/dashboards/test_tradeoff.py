from itertools import combinations
from urllib.parse import parse_qsl

import pytest

import calc
from calc.scenario import Recompute, Task
from dashboards.address import scenario_from_query
from dashboards.labels import Mark, places, text_pixels
from dashboards.tradeoff import flops_ticks, tradeoff_view, unbeaten, way_name
from dashboards.words import WORDS, Language

ENGLISH = WORDS[Language.ENGLISH]
QUESTIONS = [
    {"model": "gpt2", "gpu": "rtx-4090", "attention": "eager", "micro_batch_size": 8},
    {"model": "llama-3.1-8b", "recompute": "full", "recompute_interval": 5},
]


@pytest.fixture(params=QUESTIONS, ids=lambda question: question["model"], scope="module")
def drawn(request):
    scenario = calc.Scenario(**request.param)
    return scenario, tradeoff_view(scenario, ENGLISH)["tradeoff"]


def test_every_mark_is_a_link_to_the_way_it_stands_for(drawn):
    _, figure = drawn
    for row in figure["rows"]:
        memory = calc.estimate(scenario_from_query(parse_qsl(row["query"]))).memory
        assert (row["kept"], row["peak"], row["fits"]) == (
            memory.saved_activation_bytes,
            memory.peak_allocated_bytes,
            memory.fits,
        )


def test_the_users_own_way_is_drawn_and_marked_once(drawn):
    scenario, figure = drawn
    current = [row for row in figure["rows"] if row["is_current"]]
    assert [scenario_from_query(parse_qsl(row["query"])) for row in current] == [scenario]


def test_twice_as_much_is_twice_as_far(drawn):
    _, figure = drawn
    nothing = figure["x_ticks"][0][1]
    rows = [row for row in figure["rows"] if row["added"] != "+0.0 %"]
    added = [float(row["added"].strip("+ %")) for row in rows]
    for (one, x), (other, y) in combinations(zip(added, [row["x"] for row in rows], strict=True), 2):
        assert (x - nothing) / (y - nothing) == pytest.approx(one / other, rel=0.04)
    for one, other in combinations(figure["rows"], 2):
        assert (100 - one["y"]) * other["kept"] == pytest.approx((100 - other["y"]) * one["kept"], rel=0.01)
    assert all(0 <= row["x"] <= 100 and 0 <= row["y"] <= 100 for row in figure["rows"])


def test_the_line_runs_along_the_ways_that_none_beats():
    ways = calc.recompute_tradeoffs(calc.Scenario(**QUESTIONS[0]))
    best = unbeaten(ways)
    for index, way in enumerate(ways):
        beaten = any(
            other.recompute_flops <= way.recompute_flops and other.kept_bytes < way.kept_bytes for other in ways
        )
        assert (index in best) is not beaten


def test_ways_are_told_apart_by_their_names():
    names = [way_name(way.scenario, ENGLISH) for way in calc.recompute_tradeoffs(calc.Scenario(model="llama-3.1-8b"))]
    assert names[0] == "none"
    assert {"selective", "full", "1 layer in 4", "groups of 5"} < set(names)
    assert len(names) == len(set(names))
    both = calc.Scenario(model="gpt2", recompute=Recompute.SELECTIVE, recompute_interval=2)
    assert way_name(both, ENGLISH) == "selective, 1 layer in 2"


@pytest.mark.parametrize("most", [0.3, 4, 23.5, 33.1, 50, 99])
def test_ticks_of_flops_are_few_and_begin_at_zero(most):
    ticks = flops_ticks(most)
    assert ticks[0] == 0
    assert len(ticks) <= 5
    assert ticks[-1] <= most


SIZE = (300, 200)


def test_names_keep_clear_of_marks_lines_and_each_other():
    crowd = [Mark(50, 50, "one"), Mark(60, 50, "two"), Mark(50, 58, "three"), Mark(95, 80, "at the edge")]
    found = places(crowd, [(0, 40), (100, 40)], range(4), [SIZE])
    assert found.keys() == {0, 1, 2, 3}
    assert found[3].anchor == "end"
    boxes = [(mark.x * 3 - 7, mark.y * 2 - 7, mark.x * 3 + 7, mark.y * 2 + 7) for mark in crowd]
    for index, place in found.items():
        mark = crowd[index]
        width = text_pixels(mark.name)
        left = mark.x * 3 + place.dx - {"start": 0, "middle": width / 2, "end": width}[place.anchor]
        middle = mark.y * 2 + place.dy
        boxes.append((left, middle - 9, left + width, middle + 9))
    assert all(top >= 81 for _, top, _, _ in boxes[4:]), "on the line at 40 % of 200 pixels or above it"
    assert all(box[0] >= 0 and box[2] <= SIZE[0] and box[3] <= SIZE[1] for box in boxes[4:])
    for one, other in combinations(boxes, 2):
        is_mark_on_mark = one in boxes[:4] and other in boxes[:4]
        assert is_mark_on_mark or one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_name_without_room_is_left_out():
    assert places([Mark(50, 50, "x" * 31)], [], [0], [SIZE]) == {}
    assert places([Mark(50, 50, "x" * 30)], [], [0], [SIZE]).keys() == {0}
    assert places([Mark(50, 50, "中" * 21)], [], [0], [SIZE]) == {}
    assert places([Mark(50, 50, "x" * 30)], [], [0], [SIZE, (200, 200)]) == {}, "too wide for the narrower"


def test_the_first_in_order_has_the_room():
    touching = [Mark(50, 50, "x" * 30), Mark(50, 50, "y" * 30), Mark(50, 50, "z" * 30)]
    assert places(touching, [], [2, 0, 1], [SIZE]).keys() == {2, 0}


@pytest.mark.parametrize("task", [Task.EVALUATION, Task.INFERENCE])
def test_what_has_no_backward_has_no_trade_off(task):
    scenario = calc.Scenario(model="gpt2", task=task)
    assert tradeoff_view(scenario, ENGLISH) == {"tradeoff": None, "task": task}
    with pytest.raises(calc.ConfigError, match=f"task = '{task}'"):
        calc.recompute_tradeoffs(scenario)
