from typing import Any

import pytest

import calc
from calc import ConfigError, Scenario
from calc.comparison import MOST_SEQUENCES, QUANTITIES, Comparison, scenarios_from_objects

SMALL = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 97}


def asked(**fields: Any) -> Scenario:
    return Scenario.model_validate({"model": "gpt2"} | fields)


def test_answers_stand_side_by_side_with_their_differences() -> None:
    scenarios = [asked(micro_batch_size=8, recompute=each) for each in ("none", "full", "selective")]
    comparison = calc.compare(scenarios)
    assert [answer.memory for answer in comparison.estimates] == [calc.estimate(each).memory for each in scenarios]
    assert comparison.fields == {"recompute": ("none", "full", "selective")}
    peaks = [answer.memory.peak_allocated_bytes for answer in comparison.estimates]
    assert comparison.quantities["memory.peak_allocated_bytes"] == tuple(peaks)
    assert comparison.differences["memory.peak_allocated_bytes"] == (0, peaks[1] - peaks[0], peaks[2] - peaks[0])
    assert comparison.differences["parameters.total"] == (0, 0, 0)
    for index, answer in enumerate(comparison.estimates):
        parts = [name for name in comparison.quantities if name.startswith("memory.at_peak.")]
        assert sum(comparison.quantities[part][index] or 0 for part in parts) == answer.memory.peak_allocated_bytes


def test_every_quantity_is_the_answers_own_of_that_name() -> None:
    comparison = calc.compare([asked(recompute="full", adapter={"rank": 4})])
    assert comparison.fields == {}
    check_names(comparison)
    assert "time.prefill_seconds" not in comparison.quantities


def check_names(comparison: Comparison) -> None:
    """Its quantities are those of the first answer's JSON, by name."""
    answer = comparison.estimates[0].to_dict()
    peaks = {phase["name"]: phase["peak_allocated_bytes"] for phase in answer["memory"]["phases"]}
    for name in comparison.quantities.keys() - {MOST_SEQUENCES}:
        group, *fields = name.split(".")
        of_phase = fields[0] == "phases"
        value = peaks.get(fields[1]) if of_phase else answer[group][fields[0]]
        assert comparison.quantities[name][0] == (
            answer["memory"]["at_peak"][fields[1]] if fields[0] == "at_peak" else value
        ), name


def test_generations_are_compared_by_what_they_have() -> None:
    common = {"task": "inference", "gpu": "rtx-4090", "prompt_length": 64, "output_length": 8}
    comparison = calc.compare([asked(**common), asked(**common, weight_dtype="int8")])
    check_names(comparison)
    of_time = {name for name in comparison.quantities if name.startswith("time.")}
    assert of_time == {name for name in QUANTITIES if name.startswith("time.")}
    assert (
        not {"memory.saved_activation_bytes", "flops.recompute", "parameters.trainable"} & comparison.quantities.keys()
    )
    scenario = asked(**common)
    assert comparison.quantities[MOST_SEQUENCES][0] == calc.solve(scenario, maximise="batch_size").value
    seconds = comparison.quantities["time.seconds_per_output_token"]
    assert comparison.differences["time.seconds_per_output_token"] == (0, (seconds[1] or 0) - (seconds[0] or 0))


def test_what_one_scenario_has_not_differs_by_nothing() -> None:
    comparison = calc.compare([asked(), asked(task="inference", gpu="rtx-4090")])
    assert comparison.quantities["time.total_seconds"][0] is None
    assert comparison.differences["time.total_seconds"] == (None, None)
    assert comparison.differences["memory.saved_activation_bytes"] == (0, None)


def differing(*questions: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return dict(calc.compare([asked(**question) for question in questions]).fields)


def test_fields_are_those_that_differ_once_filled_in() -> None:
    assert differing({"sequence_length": 1024}, {}) == {}
    assert differing({"attention": "flash"}, {"attention": "eager"}, {}) == {"attention": ("flash", "eager", "flash")}
    assert differing({"adapter": {"rank": 4}}, {"adapter": {"rank": 8}}) == {"adapter.rank": (4, 8)}
    assert differing({}, {"adapter": {"rank": 4}})["adapter.rank"] == (None, 4)


def test_configs_differ_field_by_field_a_name_and_a_config_as_a_whole() -> None:
    wider = {**SMALL, "hidden_size": 128}
    assert differing({"model": SMALL}, {"model": wider}) == {"model.hidden_size": (64, 128)}
    fields = differing({"sequence_length": 64}, {"model": SMALL, "sequence_length": 64})
    assert fields == {"model": ("gpt2", SMALL)}


@pytest.mark.parametrize("count", [0, 5])
def test_one_to_four_scenarios_are_compared(count: int) -> None:
    with pytest.raises(ConfigError, match=f"scenarios = {count}: should be 1 to 4"):
        calc.compare([Scenario(model="gpt2")] * count)


def test_what_is_wrong_with_one_scenario_names_it_by_its_place() -> None:
    with pytest.raises(ConfigError, match=r"scenarios\.1\.sequence_length = 5000: should be at most 1024"):
        calc.compare([asked(), asked(sequence_length=5000)])
    with pytest.raises(ConfigError, match=r"scenarios\.2\.micro_batch_size = 0"):
        scenarios_from_objects([{"model": "gpt2"}, {"model": "gpt2"}, {"model": "gpt2", "micro_batch_size": 0}])
