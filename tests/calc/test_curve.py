"""The curve's points against the timeline they are taken from."""

from typing import Any

import pytest

from calc import Estimate, Scenario, estimate
from calc.curve import MOST_PARTS
from calc.timeline import Phase


def answered(num_layers: int = 3, **choices: Any) -> Estimate:
    config = {"model_type": "llama", "num_hidden_layers": num_layers, "hidden_size": 256, "vocab_size": 1000}
    return estimate(Scenario(model=config, sequence_length=64, **choices))


CASES = [
    {},
    {"recompute": "full"},
    {"attention": "eager", "precision": "fp32", "optimizer": "adamw-for-loop"},
    {"gradient_accumulation_steps": 4, "precision": "fp16-autocast"},
    {"precision": "megatron-18", "recompute": "selective"},
    {"num_layers": 500},
]


@pytest.mark.parametrize("choices", CASES, ids=str)
def test_the_peaks_of_the_phases_are_the_curves_highest_points(choices: dict[str, Any]) -> None:
    seen = answered(**choices)
    for phase in seen.memory.phases:
        levels = [point["allocated_bytes"] for point in seen.timeline if point["phase"] is phase.name]
        assert max(levels) == phase.peak_allocated_bytes, phase.name
    assert max(point["allocated_bytes"] for point in seen.timeline) == seen.memory.peak_allocated_bytes


@pytest.mark.parametrize("choices", CASES, ids=str)
def test_the_curve_ends_where_it_starts(choices: dict[str, Any]) -> None:
    first, *_, last = answered(**choices).timeline
    assert (first["label"], first["layer"]) == ("start", None)
    assert (
        first["allocated_bytes"] == last["allocated_bytes"] == sum(answered(**choices).memory.persistent_bytes.values())
    )


def test_layers_go_up_in_forward_and_down_in_backward() -> None:
    def layers(phase: Phase) -> list[int]:
        passed = [
            point["layer"] for point in answered().timeline if point["phase"] is phase and point["layer"] is not None
        ]
        return list(dict.fromkeys(passed))

    assert layers(Phase.FORWARD) == [0, 1, 2]
    assert layers(Phase.BACKWARD) == [2, 1, 0]


def test_equal_parts_that_only_rise_or_fall_are_one_line() -> None:
    rising_then_falling = [point for point in answered(num_layers=40).timeline if point["phase"] is Phase.OPTIMIZER]
    assert [point["layer"] for point in rising_then_falling if point["label"] == "layer"] == [0, 39, 0, 39, 0, 39]


def test_many_layers_are_sampled_with_the_first_and_the_last() -> None:
    layers = {point["layer"] for point in answered(num_layers=500).timeline if point["phase"] is Phase.FORWARD}
    assert {0, 1, 499} < layers
    assert MOST_PARTS <= len(layers - {None}) <= MOST_PARTS + 1  # the first layer is a run of its own


def test_a_curve_does_not_grow_with_the_layers() -> None:
    assert len(answered(num_layers=10**6).timeline) == len(answered(num_layers=10**4).timeline)
