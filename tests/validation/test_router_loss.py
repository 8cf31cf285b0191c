"""The routers' auxiliary loss: the ledger against the real models' steps, and what it is refused with."""

from typing import Any

import pytest

from calc import ConfigError, Scenario, estimate
from calc.router_loss import FAMILIES
from calc.scenario import Implementation, Task
from tests.validation.families import config_of
from tests.validation.random_steps import agree
from validation.trace import trace

SIZES = {"micro_batch_size": 2, "sequence_length": 64}
EVERY_OTHER = {"decoder_sparse_step": 2, "num_hidden_layers": 4}
LORA = {"kind": "lora", "target_modules": ["q_proj"]}


def step_of(family: str, **choices: Any) -> tuple[Scenario, dict[str, Any]]:
    config = config_of(family) | choices.pop("config", {})
    return Scenario(model=config, **SIZES, **choices), config


PRECISIONS = ("fp32", "bf16", "bf16-autocast", "fp16-autocast")


@pytest.mark.parametrize(
    ("family", "precision"),
    [*(("mixtral", precision) for precision in PRECISIONS), *zip(FAMILIES[1:], PRECISIONS * 2, strict=False)],
)
def test_of_each_family(family: str, precision: str) -> None:
    scenario, config = step_of(family, precision=precision, output_router_logits=True, config={"vocab_size": 1999})
    traced = trace(scenario, config)
    agree(scenario, traced)
    memory = estimate(scenario).memory
    assert [phase.peak_allocated_bytes for phase in memory.phases] == [
        phase["peak_allocated_bytes"] for phase in traced.memory["phases"]
    ]


@pytest.mark.parametrize(
    "choices",
    [
        {"recompute": "full"},
        {"recompute": "full", "recompute_group_size": 2, "gradient_accumulation_steps": 2},
        {"recompute": "full", "recompute_offload": True, "hold_outputs": True},
        {"recompute": "selective", "attention": "eager"},
        {"recompute": "operators"},
        {"frozen_layers": 1},
        {"frozen_layers": 3},
        {"adapter": LORA},
        {"adapter": LORA | {"layers_to_transform": [1]}, "precision": "bf16", "recompute": "full"},
        {"adapter": {"kind": "prompt-tuning"}},
        {"task": "evaluation"},
        {"task": "evaluation", "eval_accumulation_steps": 3},
        {"config": EVERY_OTHER},
        {"config": EVERY_OTHER | {"mlp_only_layers": [3]}, "recompute": "full"},
    ],
    ids=str,
)
def test_with_other_choices(choices: dict[str, Any]) -> None:
    scenario, config = step_of("qwen3_moe", output_router_logits=True, **choices)
    agree(scenario, trace(scenario, config))


def test_the_config_asks_for_it_too_and_the_scenario_has_the_last_word() -> None:
    asked = {"config": {"output_router_logits": True}}
    scenario, config = step_of("mixtral", **asked)
    agree(scenario, trace(scenario, config))
    without, _ = step_of("mixtral", **asked, output_router_logits=False)
    plain, _ = step_of("mixtral")
    saved = [estimate(each).memory.saved_activation_bytes for each in (scenario, without, plain)]
    assert saved[0] > saved[1] == saved[2]


@pytest.mark.parametrize(
    ("family", "choices", "message"),
    [
        ("llama", {}, "output_router_logits = True: should be false: llama has no layer with experts"),
        ("deepseek_v3", {}, "should be false: transformers has no auxiliary loss for deepseek_v3"),
        ("mixtral", {"loss": "chunked-cross-entropy"}, "is not supported yet with loss = chunked-cross-entropy"),
        ("mixtral", {"adapter": {"kind": "prefix-tuning"}}, "is not supported yet with adapter.kind = prefix-tuning"),
        ("mixtral", {"adapter": {"kind": "adalora", "target_modules": ["q_proj"]}}, "with adapter.kind = adalora"),
    ],
)
def test_refused(family: str, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        estimate(Scenario(model=config_of(family), output_router_logits=True, **SIZES, **choices))


def test_a_config_that_asks_for_what_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.output_router_logits = True: should be false: transformers has no"):
        estimate(Scenario(model=config_of("deepseek_v3") | {"output_router_logits": True}))


def test_generation_has_none() -> None:
    config = config_of("mixtral") | {"output_router_logits": True}
    with pytest.raises(ConfigError, match="the auxiliary loss is part of training and evaluation"):
        estimate(Scenario(model=config, task=Task.INFERENCE, prompt_length=8))
    with pytest.raises(ConfigError, match="output_router_logits"):
        estimate(Scenario(model=config_of("mixtral"), task=Task.INFERENCE, prompt_length=8, output_router_logits=True))


def test_of_megatron() -> None:
    with pytest.raises(ConfigError):
        estimate(
            Scenario(model=config_of("mixtral"), output_router_logits=True, implementation=Implementation.MEGATRON)
        )


@pytest.mark.parametrize("choices", [{}, {"recompute": "full", "recompute_group_size": 2}, {"hold_outputs": True}])
def test_the_allocators_simulation_takes_it(choices: dict[str, Any]) -> None:
    scenario, _ = step_of("qwen3_moe", output_router_logits=True, **choices)
    answer = estimate(scenario)
    assert answer.to_dict(reserved=True)["memory"]["peak_reserved_bytes"] >= answer.memory.peak_allocated_bytes
