"""Experts in a loop, with tokens spread evenly or not, and as copies for each token: the ledger against real models."""

from typing import Any

import pytest

from calc import Scenario, estimate
from tests.validation.families import config_of
from tests.validation.random_steps import agree
from validation.trace import trace

FAMILIES = (
    *("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "granitemoe", "phimoe"),
    *("deepseek_v2", "deepseek_v3", "glm4_moe", "dots1", "ernie4_5_moe", "gpt_oss"),
)
LORA = {"kind": "lora", "target_modules": ["q_proj"]}


def check(family: str, how: str = "eager", **choices: Any) -> None:
    config = config_of(family)
    choices |= {"micro_batch_size": 2, "sequence_length": 24, "experts_implementation": how}
    scenario = Scenario(model=config, **choices)
    traced = trace(scenario, config)
    agree(scenario, traced)
    memory = estimate(scenario).memory
    assert [phase.peak_allocated_bytes for phase in memory.phases] == [
        phase["peak_allocated_bytes"] for phase in traced.memory["phases"]
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_of_each_family(family: str) -> None:
    check(family, expert_load="worst")


@pytest.mark.parametrize(
    "choices",
    [
        {"expert_load": "even", "precision": "bf16"},
        {"expert_load": (1, 2, 0, 3), "precision": "bf16", "recompute": "full"},
        {"expert_load": (1, 2, 0, 3), "precision": "fp32", "gradient_accumulation_steps": 2},
        {"expert_load": (1, 2, 0, 3), "recompute": "full", "recompute_group_size": 2},
        {"expert_load": "even", "accumulate_grads_in_fp32": True, "precision": "bf16"},
        {"expert_load": (1, 1, 1, 1), "adapter": LORA, "attention": "eager"},
        {"expert_load": "worst", "frozen_layers": 2, "precision": "fp16-autocast"},
        {"expert_load": "worst", "output_router_logits": True},
        {"expert_load": "worst", "task": "evaluation"},
    ],
    ids=str,
)
def test_with_other_choices(choices: dict[str, Any]) -> None:
    check("mixtral", **choices)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "qwen2_moe", "gpt_oss"])
@pytest.mark.parametrize(
    "choices", [{"precision": "bf16", "recompute": "full"}, {"precision": "fp16-autocast"}], ids=str
)
def test_copies_for_each_token(family: str, choices: dict[str, Any]) -> None:
    check(family, how="batched_mm", **choices)
