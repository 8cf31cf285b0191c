from typing import Any

import pytest

import calc
from dashboards import figures

QUESTIONS = [
    {"model": "llama-3.1-8b", "gpu": "h100-sxm-80gb", "precision": "bf16", "recompute": "full"},
    {"model": "llama-3.1-8b", "gpu": "rtx-4090"},
    {"model": "gpt2", "gradient_accumulation_steps": 4, "precision": "fp16-autocast"},
    {"model": "qwen3-0.6b", "gpu": "h100-sxm-80gb", "adapter": {"kind": "lora"}},
]


@pytest.fixture(params=QUESTIONS, ids=lambda question: question["model"], scope="module")
def memory(request) -> dict[str, Any]:
    return calc.estimate(calc.Scenario(**request.param)).to_dict()["memory"]


def test_the_bar_adds_up_to_what_the_verdict_says(memory):
    bar = figures.bar(memory)
    outside = (memory["library_workspace_bytes"] or 0) + (memory["assumed_context_bytes"] or 0)
    assert bar["needed_bytes"] == memory["peak_allocated_bytes"] + outside
    assert sum(segment["bytes"] for segment in bar["segments"]) == bar["needed_bytes"]
    if memory["usable_bytes"] is not None:
        assert memory["usable_bytes"] - bar["needed_bytes"] == memory["headroom_bytes"]


def test_segments_touch_and_are_as_wide_as_they_are_large(memory):
    bar = figures.bar(memory)
    edge = 0.0
    for segment in bar["segments"]:
        assert segment["x"] == pytest.approx(edge)
        edge = segment["x"] + segment["width"]
        assert segment["width"] * bar["needed_bytes"] == pytest.approx(
            segment["bytes"] * sum(each["width"] for each in bar["segments"])
        )
    assert edge <= 100 + 1e-9


def test_the_end_of_the_bar_and_the_capacity_line_are_in_the_verdicts_order(memory):
    bar = figures.bar(memory)
    end = sum(segment["width"] for segment in bar["segments"])
    if bar["capacity"] is None:
        assert memory["fits"] is None
    else:
        assert (end <= bar["capacity"]["x"]) is memory["fits"]
        assert bar["capacity"]["x"] <= 100


def test_the_curve_runs_through_the_whole_step_and_marks_its_peak(memory):
    curve = figures.curve(memory)
    positions = [point["x"] for point in curve["points"]]
    assert (positions[0], positions[-1]) == (0, 100)
    assert positions == sorted(positions)
    assert all(0 <= point["y"] <= 100 for point in curve["points"])
    assert curve["peak"]["allocated_bytes"] == memory["peak_allocated_bytes"]
    assert curve["peak"]["phase"] == memory["peak_phase"]
    assert curve["peak"]["y"] == pytest.approx(min(point["y"] for point in curve["points"]), abs=0.01)


def test_phases_fill_the_curve_in_their_order(memory):
    phases = figures.curve(memory)["phases"]
    assert [phases[0]["name"], phases[-1]["name"]] == ["forward", "optimizer"]
    assert sum(phase["width"] for phase in phases) == pytest.approx(100)


def test_ticks_are_few_and_within_the_drawing(memory):
    ticks = figures.curve(memory)["ticks"]
    assert 2 <= len(ticks) <= figures.MOST_TICKS
    assert all(0 <= tick["y"] < 100 for tick in ticks)
    assert all(tick["bytes"] % ticks[0]["bytes"] == 0 for tick in ticks)
