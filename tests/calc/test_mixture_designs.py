"""A mixture's experts cut finer and coarser: what stays, what grows and by how much."""

import json
from itertools import combinations
from typing import Any

import pytest

from calc import ConfigError, ExpertDesign, Scenario, closed_forms, expert_designs
from calc.cli import main

H, F, L, TOKENS = 64, 256, 3, 2 * 16
SIXTEEN_OF_TWO = {
    "model_type": "mixtral",
    "hidden_size": H,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 199,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
}


def designs(config: dict[str, Any] = SIXTEEN_OF_TWO, **choices: Any) -> tuple[ExpertDesign, ...]:
    return expert_designs(Scenario(model=config, micro_batch_size=2, sequence_length=16, **choices))


def test_sixteen_of_two_against_sixty_four_of_eight() -> None:
    coarse, fine = designs()
    assert (coarse.num_experts, coarse.num_experts_per_tok, coarse.expert_size) == (16, 2, F)
    assert (fine.num_experts, fine.num_experts_per_tok, fine.expert_size) == (64, 8, F // 4)
    assert (coarse.combinations, fine.combinations) == (120, 4_426_165_368)
    assert (coarse.is_asked, fine.is_asked) == (True, False)


def test_experts_stay_as_large_and_the_router_grows() -> None:
    coarse, fine = (design.estimate for design in designs())
    router = L * (64 - 16) * H
    assert fine.parameters.total - coarse.parameters.total == router
    assert fine.parameters.active_per_token - coarse.parameters.active_per_token == router
    assert fine.flops.forward - coarse.flops.forward == 2 * TOKENS * router


def test_every_expert_keeps_its_input_and_its_output() -> None:
    """In half precision two more copies of H for each of six more experts a token; beside them indices, weights and
    the router's probabilities."""
    coarse, fine = (design.estimate.memory.saved_activation_bytes_per_layer for design in designs(precision="bf16"))
    assert isinstance(coarse, int)
    assert isinstance(fine, int)
    copies = 2 * TOKENS * 6 * 2 * H
    indices = TOKENS * 6 * (3 * 8 + 2 * 4)  # three of int64, two weights in fp32
    routing = TOKENS * (64 - 16) * 4
    assert copies < fine - coarse <= copies + indices + 2 * routing


def test_the_coarser_is_there_where_it_comes_out_even() -> None:
    fine = SIXTEEN_OF_TWO | {"num_local_experts": 64, "num_experts_per_tok": 8, "intermediate_size": F // 4}
    cut = designs(fine)
    assert [(design.num_experts, design.is_asked) for design in cut] == [(16, False), (64, True), (256, False)]
    assert cut[0].estimate.flops == designs()[0].estimate.flops


def test_a_cut_that_experts_cannot_have_is_left_out() -> None:
    """264 / 4 is no multiple that grouped_mm takes."""
    assert [design.is_asked for design in designs(SIXTEEN_OF_TWO | {"intermediate_size": 264})] == [True]


def test_one_expert_a_token_is_another_ledger() -> None:
    """Of four experts a token put together one is left, whose sum passes its gradient on: what is read is the same."""
    four = SIXTEEN_OF_TWO | {"num_experts_per_tok": 4}
    one = SIXTEEN_OF_TWO | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 4 * F}
    assert designs(four)[0].estimate.architecture == designs(one)[0].estimate.architecture


def test_a_capacity_bounds_what_experts_keep() -> None:
    """With as many places as tokens come, it is what the ledger keeps of each expert's tokens in half precision."""
    [design, _] = designs(precision="bf16")
    section = design.estimate.step.runs[1].part.section
    kept = {tensor for row in section.rows for gradient in row.gradients for tensor in (*row.saves, *gradient.needs)}
    sizes = design.estimate.step.runs[1].sizes
    of_experts = {each for each in kept if "Y" in each.shape and {"H", "F"} & set(each.shape)}
    assert design.capacity_bytes == sum(each.nbytes(sizes) for each in of_experts)


def test_a_load_drops_what_is_beyond_the_capacity(capsys: pytest.CaptureFixture[str]) -> None:
    config = json.dumps(SIXTEEN_OF_TWO)
    main(["explain", "experts", config, "--sequence-length", "16", "--micro-batch-size", "2", "--expert-load", "worst"])
    assert "dropped" in capsys.readouterr().out
    assert designs(expert_load="worst")[0].dropped == 2 * (TOKENS - 2 * TOKENS // 16)


def test_capacity_of_the_founding_text() -> None:
    assert closed_forms.expert_capacity(num_tokens=1000, num_experts=8) == 2 * 1000 / 8
    assert closed_forms.expert_capacity(num_tokens=1001, num_experts=8) == 251
    assert closed_forms.expert_capacity(num_tokens=1000, num_experts=64, experts_per_token=8, capacity_factor=2) == 250
    assert {design.capacity for design in designs()} == {2 * TOKENS // 16}


@pytest.mark.parametrize(
    ("load", "largest", "dropped"),
    [
        ("even", TOKENS // 8, 0),
        ("worst", TOKENS, 2 * (TOKENS - TOKENS // 8)),
        (
            (3, 2, *(1,) * 11, 0, 0, 0),
            TOKENS * 6 // 16,
            TOKENS * 6 // 16 - TOKENS // 8 + TOKENS * 4 // 16 - TOKENS // 8,
        ),
    ],
)
def test_tokens_that_a_capacity_would_drop(load: Any, largest: int, dropped: int) -> None:
    [asked] = [each for each in designs(expert_load=load) if each.is_asked]
    assert (asked.largest_load, asked.dropped) == (largest, dropped)


@pytest.mark.parametrize(("num_experts", "chosen"), [(5, 2), (6, 6), (4, 1)])
def test_combinations_are_counted(num_experts: int, chosen: int) -> None:
    counted = closed_forms.expert_combinations(num_experts=num_experts, experts_per_token=chosen)
    assert counted == len(list(combinations(range(num_experts), chosen)))


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no mixture of experts"):
        expert_designs(Scenario(model="gpt2"))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "experts", "mixtral-8x7b", "--json"]) == 0
    coarse, fine = json.loads(capsys.readouterr().out)
    assert (coarse["combinations"], fine["combinations"]) == (28, 10_518_300)
    assert coarse["saved_activation_bytes"] < fine["saved_activation_bytes"]
    assert main(["explain", "experts", "mixtral-8x7b"]) == 0
    assert "8 of 32" in capsys.readouterr().out
