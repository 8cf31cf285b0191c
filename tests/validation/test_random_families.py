"""Random steps of the families that have no test of random steps to themselves, against the real models' own."""

from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from calc import Adapter, ConfigError, Scenario, estimate
from calc.plan import SUPPORTED
from calc.scenario import AdapterDType, Attention, Precision, Recompute
from tests.validation.families import FAMILIES, config_of, configs
from tests.validation.random_steps import OPTIMIZERS, PRECISIONS, SLOW, TIMES, agree
from validation.trace import trace

WITH_TESTS = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3"})
"""tests/validation/test_ledger_against_trace*.py"""


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    model_type = draw(st.sampled_from(sorted(FAMILIES.keys() - WITH_TESTS)))
    config: dict[str, Any] = draw(configs(model_type))
    adapters = st.builds(
        Adapter,
        rank=st.integers(1, 9),
        dropout=st.sampled_from((0.0, 0.1)),
        dtype=st.sampled_from(AdapterDType),
        target_modules=st.just(FAMILIES[model_type].lora_targets),
    )
    return Scenario(
        model=config,
        micro_batch_size=draw(st.integers(1, 4)),
        target_length=FAMILIES[model_type].asked.get("target_length"),
        sequence_length=FAMILIES[model_type].length(draw(st.integers(1, 64))),
        gradient_accumulation_steps=draw(st.sampled_from((1, 1, 2))),
        precision=draw(st.sampled_from(PRECISIONS)),
        optimizer=draw(st.sampled_from(OPTIMIZERS)),
        max_grad_norm=draw(st.sampled_from((None, 1.0))),
        attention=draw(st.sampled_from(sorted(SUPPORTED["attention"]))),
        recompute=draw(st.sampled_from((Recompute.NONE, Recompute.FULL, Recompute.SELECTIVE))),
        dropout=draw(st.sampled_from((None, None, 0.1))),
        hold_outputs=draw(st.booleans()),
        adapter=draw(st.none() | adapters),
    )


@settings(SLOW, max_examples=30 * TIMES)
@given(scenario=scenarios())
def test_random_steps_of_families(scenario: Scenario) -> None:
    try:
        estimate(scenario)
    except ConfigError:
        reject()  # what a family does not go with has tests of its own
    assert isinstance(scenario.model, dict)
    agree(scenario, trace(scenario, scenario.model))


def test_one_token_of_one_key_value_head() -> None:
    """Found by random steps: heads of one expanded key/value head never lie side by side."""
    config = config_of("exaone4") | {"num_key_value_heads": 1, "hidden_size": 144, "num_attention_heads": 6}
    scenario = Scenario(
        model=config,
        micro_batch_size=2,
        sequence_length=1,
        attention=Attention.EAGER,
        precision=Precision.BF16,
    )
    agree(scenario, trace(scenario, config))


@pytest.mark.parametrize(
    ("model_type", "fields", "batch_size"),
    [
        ("gpt2", {}, 5),
        ("gpt_bigcode", {}, 3),
        ("modernbert", {}, 3),
        ("phi3", {"num_key_value_heads": 4}, 3),
        ("gpt_neox", {}, 5),
    ],
)
def test_one_token_of_one_projection(model_type: str, fields: dict[str, Any], batch_size: int) -> None:
    """Parts of one projection, behind each other, are copied to be seen as one matrix; GPT-NeoX's alternate by head."""
    config = config_of(model_type) | fields
    choices: dict[str, Any] = {"attention": Attention.EAGER, "precision": Precision.BF16}
    scenario = Scenario(model=config, micro_batch_size=batch_size, sequence_length=1, **choices)
    agree(scenario, trace(scenario, config))
