"""How tokens spread over experts: counts, what a load changes and what not, what is refused."""

from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc import ConfigError, Scenario, estimate
from calc.architecture import Experts
from calc.expert_load import tokens_of_experts
from calc.scenario import ExpertLoad, ExpertsImplementation
from tests.validation.families import config_of

LOADS = (ExpertLoad.EVEN, ExpertLoad.WORST, (3.0, 1.0, 0.0, 2.0))
MANY_EXPERTS = config_of("mixtral") | {"num_local_experts": 513}
LOOP = ExpertsImplementation.EAGER
SIZES: dict[str, Any] = {"micro_batch_size": 2, "sequence_length": 64}


@given(
    num_tokens=st.integers(1, 500),
    chosen=st.integers(1, 4),
    shares=st.lists(st.integers(0, 9), min_size=4, max_size=9),
)
def test_every_token_goes_to_so_many_experts(num_tokens: int, chosen: int, shares: list[int]) -> None:
    experts = Experts(num_experts=len(shares), num_experts_per_tok=chosen)
    possible = sum(shares) and max(shares) * chosen <= sum(shares)
    histogram = [tuple(map(float, shares))] if possible else []
    for load in (ExpertLoad.EVEN, ExpertLoad.WORST, *histogram):
        tokens = tokens_of_experts(load, experts, num_tokens)
        assert sum(tokens) == chosen * num_tokens
        assert 0 <= max(tokens) <= num_tokens
    even = tokens_of_experts(ExpertLoad.EVEN, experts, num_tokens)
    assert max(even) - min(even) <= 1


def test_a_histogram_is_in_any_unit() -> None:
    experts = Experts(num_experts=4, num_experts_per_tok=2)
    assert tokens_of_experts((3, 1, 0, 2), experts, 6) == [6, 2, 0, 4]
    assert tokens_of_experts((0.5, 1 / 6, 0, 1 / 3), experts, 6) == [6, 2, 0, 4]


def test_thousands_of_experts_take_no_time() -> None:
    """Each expert's share of the sum of all, which is summed once: seconds before."""
    experts = Experts(num_experts=4096, num_experts_per_tok=8)
    start = perf_counter()
    assert tokens_of_experts(ExpertLoad.EVEN, experts, 4096) == [8] * 4096
    assert perf_counter() - start < 1


def answer(**fields: Any) -> dict[str, Any]:
    given = estimate(Scenario(model=config_of("mixtral"), **SIZES, **fields)).to_dict()
    del given["scenario"]
    return given


@pytest.mark.parametrize("how", ["grouped_mm", "batched_mm"])
def test_products_of_all_experts_do_not_care(how: str) -> None:
    """A grouped product's rows are tokens sorted by expert, [k·N, ...], wherever the borders between experts lie; each
    token of a batched one has copies of its own."""
    even, *others = (answer(expert_load=load, experts_implementation=how) for load in LOADS)
    assert all(other == even for other in others)


def test_the_loop_does() -> None:
    """Each load another peak; FLOPs and weights are the same, and the same as those of the grouped product."""
    answers = [answer(expert_load=load, experts_implementation=LOOP) for load in LOADS]
    assert len({each["memory"]["peak_allocated_bytes"] for each in answers}) == len(LOADS)
    grouped = answer()
    for each in answers:
        assert each["flops"]["total"] == grouped["flops"]["total"]
        assert each["parameters"] == grouped["parameters"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"expert_load": (1.0, 2.0)}, "even, worst or 4 numbers"),
        ({"expert_load": (4.0, 0.0, 1.0, 0.0)}, "no expert more than 1/2"),
        ({"expert_load": (0.0,) * 4}, "a number above 0"),
        ({"expert_load": (-1.0, 1.0, 1.0, 1.0)}, "even"),
        ({"expert_load": "skewed"}, "even"),
        ({"experts_implementation": "sonicmoe"}, "grouped_mm"),
        ({"experts_implementation": "eager", "recompute": "operators"}, "operators"),
        ({"experts_implementation": "eager", "task": "inference", "prompt_length": 8}, "inference"),
        ({"experts_implementation": "eager", "model": config_of("llama4_text")}, "through all of them"),
        ({"expert_load": "worst", "model": config_of("llama4_text")}, "through all of them"),
        ({"expert_load": "worst", "model": "gpt2"}, "gpt2 is not"),
        ({"experts_implementation": "eager", "model": MANY_EXPERTS}, "at most 512"),
    ],
    ids=str,
)
def test_what_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        estimate(Scenario(**{"model": config_of("mixtral"), **fields}))
    assert error.value.field in ("expert_load", "experts_implementation")


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_what_the_events_free_was_there(load: Any) -> None:
    scenario = Scenario(model=config_of("qwen2_moe"), **SIZES, experts_implementation=LOOP, expert_load=load)
    memory = estimate(scenario).memory
    assert memory.reserved is not None
    assert memory.reserved.peak_reserved_bytes >= memory.peak_allocated_bytes
