"""Advice is the scenario with one thing changed, answered again; the ways of recomputation likewise."""

from typing import Any

import pytest

from calc import Adapter, Scenario, advise, estimate, recompute_tradeoffs
from calc.advice import CHANGES, CHANGES_OF_INFERENCE
from calc.inventory import largest_at_peak
from calc.scenario import Recompute, WeightDType

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 9,
    "intermediate_size": 100,
    "vocab_size": 97,
}


def asked(**fields: Any) -> Scenario:
    return Scenario(**fields)


SCENARIOS = [
    asked(model="gpt2", micro_batch_size=8, attention="eager", gpu="rtx-4090"),
    asked(model=LLAMA, sequence_length=512, micro_batch_size=4),
    asked(model=LLAMA, sequence_length=64, recompute="full", adapter=Adapter(rank=3), precision="bf16"),
    asked(model=LLAMA, sequence_length=64, optimizer="sgd", precision="fp32", attention="eager"),
]
COMMON: dict[str, Any] = {"model": "llama-3.1-8b", "task": "inference", "gpu": "h100-sxm-80gb", "batch_size": 8}
GENERATIONS = [
    asked(**COMMON, prompt_length=2048, output_length=512, attention="eager"),
    asked(**COMMON, prompt_length=2048, output_length=512, page_size=16),
    asked(model=LLAMA, task="inference", precision="fp32", prompt_length=100, output_length=9),
]


@pytest.mark.parametrize("scenario", [*SCENARIOS, *GENERATIONS], ids=str)
def test_every_advice_is_a_changed_scenario_that_needs_less(scenario: Scenario) -> None:
    current = estimate(scenario)
    given = advise(scenario)
    assert given
    for each in given:
        answer = estimate(each.scenario)
        assert each.scenario != scenario
        assert answer.memory.peak_allocated_bytes == current.memory.peak_allocated_bytes - each.saved_bytes
        rounds = 2 if each.key == "half-sequences" else 1
        assert rounds * answer.flops.total == current.flops.total + each.added_flops
        assert each.saved_bytes > 0
        assert each.effect is (CHANGES_OF_INFERENCE if scenario.task == "inference" else CHANGES)[each.key][0]
        if current.time is None or answer.time is None:
            assert each.added_seconds is None
        else:
            added = rounds * answer.time.total_seconds - current.time.total_seconds
            assert each.added_seconds == pytest.approx(added)
    saved = [each.saved_bytes for each in given]
    assert saved == sorted(saved, reverse=True)


def test_half_the_batch_twice_is_the_same_step() -> None:
    (half,) = (each for each in advise(SCENARIOS[0]) if each.key == "half-batch")
    assert (half.scenario.micro_batch_size, half.scenario.gradient_accumulation_steps) == (4, 2)
    assert half.added_flops == 0


def test_generations_are_advised_what_they_have() -> None:
    own, paged, fp32 = ({each.key for each in advise(scenario)} for scenario in GENERATIONS)
    weights = {"int8-weights", "fp8-weights", "nf4-weights", "awq-weights"}
    assert own >= weights | {"half-sequences", "flash", "pages", "smaller-cache", "half-prompt"}
    assert paged >= {"fp8-weights", "awq-weights", "half-sampled", "smaller-cache", "half-output"}
    assert paged.isdisjoint({"pages", "static-cache", "nf4-weights", "bf16-weights"})
    assert {"bf16-weights", "half-prompt"} <= fp32
    assert "half-output" not in fp32
    half = next(each for each in advise(GENERATIONS[0]) if each.key == "half-sequences")
    assert half.added_flops == 0
    assert half.added_seconds is not None
    assert half.added_seconds > 0
    quantised = {each.key for each in advise(GENERATIONS[0].model_copy(update={"weight_dtype": WeightDType.NF4}))}
    assert quantised.isdisjoint({"nf4-weights", "int8-weights"})


def test_what_is_done_already_is_not_advised() -> None:
    keys = {each.key for each in advise(SCENARIOS[2])}
    assert keys.isdisjoint({"lora", "recompute-full", "half-weights"})
    assert "sgd" not in {each.key for each in advise(SCENARIOS[3])}


def test_a_sequence_of_one_token_is_not_halved() -> None:
    assert "half-sequence" not in {each.key for each in advise(asked(model=LLAMA, sequence_length=1))}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_tradeoffs_are_the_scenario_with_other_recomputation(scenario: Scenario) -> None:
    ways = recompute_tradeoffs(scenario)
    assert ways[0].scenario.recompute is Recompute.NONE
    assert ways[0].recompute_flops == 0
    for way in ways:
        answer = estimate(way.scenario)
        assert way.kept_bytes == answer.memory.saved_activation_bytes
        assert way.recompute_flops == answer.flops.recompute
        same: dict[str, Any] = {"recompute": "none", "recompute_interval": 1, "recompute_group_size": 1}
        assert way.scenario.model_copy(update=same) == scenario.model_copy(update=same)
    flops = [way.recompute_flops for way in ways]
    assert flops == sorted(flops)


def test_there_is_a_tradeoff() -> None:
    """Of nine layers: every fourth, third, second, each; groups of two, three, six. Each way further keeps less."""
    ways = recompute_tradeoffs(asked(model=LLAMA, sequence_length=64, precision="bf16"))
    whole_layers = [way for way in ways if way.scenario.recompute is Recompute.FULL]
    kept = [way.kept_bytes for way in whole_layers]
    assert kept == sorted(kept, reverse=True)
    assert sorted(way.scenario.recompute_interval for way in whole_layers) == [1, 1, 1, 1, 2, 3, 4]
    assert sorted(way.scenario.recompute_group_size for way in whole_layers) == [1, 1, 1, 1, 2, 3, 6]


def test_one_layer_is_neither_skipped_nor_grouped() -> None:
    ways = recompute_tradeoffs(asked(model=LLAMA | {"num_hidden_layers": 1}, sequence_length=64))
    assert sorted(way.scenario.recompute for way in ways) == sorted(Recompute)


def test_the_largest_at_the_peak() -> None:
    answer = estimate(SCENARIOS[0])
    largest = largest_at_peak(answer.tensors)
    sizes = [entry.bytes * entry.count_at_peak for entry in largest]
    assert len(largest) == 10
    assert sizes == sorted(sizes, reverse=True)
    others = [entry.bytes * entry.count_at_peak for entry in answer.tensors if entry not in largest]
    assert max(others) <= min(sizes)


def test_layers_with_different_masks_make_no_groups() -> None:
    mixed = LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    ways = recompute_tradeoffs(asked(model=mixed, sequence_length=64, attention="eager"))
    assert {way.scenario.recompute_group_size for way in ways} == {1}
    assert "recompute-groups" not in {each.key for each in advise(asked(model=mixed, attention="eager"))}
