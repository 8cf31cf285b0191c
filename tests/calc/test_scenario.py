"""Scenario: its defaults, what it refuses, and its spelling as strings."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from calc import Adapter, ConfigError, Scenario
from calc.errors import LONGEST_QUOTE, shown
from calc.scenario import (
    LARGEST_SIZE,
    AdapterDType,
    Attention,
    Implementation,
    Optimizer,
    Precision,
    Recompute,
    Task,
    scenario_from_strings,
)

DEFAULTS_OF_THE_CONTRACT = {
    "gpu": None,
    "num_gpus": 1,
    "task": "training",
    "implementation": "transformers",
    "micro_batch_size": 1,
    "sequence_length": None,
    "gradient_accumulation_steps": 1,
    "precision": "bf16-autocast",
    "optimizer": "adamw",
    "attention": "auto",
    "recompute": "none",
    "recompute_interval": 1,
    "recompute_group_size": 1,
    "loss": "cross-entropy",
    "adapter": None,
    "dropout": None,
}
WORDS_OF_THE_CONTRACT = {
    Task: "training evaluation inference",
    Implementation: "transformers megatron",
    Precision: "bf16-autocast fp16-autocast bf16-weights-autocast fp32 bf16 fp16 zero-16 megatron-18 textbook-20",
    Optimizer: (
        "adamw adamw-fused adamw-for-loop adamw-8bit paged-adamw-8bit sgd sgd-momentum sgd-nesterov adafactor lion muon"
    ),
    Attention: "auto flash eager efficient math cudnn",
    Recompute: "none full selective operators",
    AdapterDType: "fp32 base",
}


def test_defaults() -> None:
    given = Scenario(model="gpt2").model_dump(mode="json")
    assert {name: given[name] for name in DEFAULTS_OF_THE_CONTRACT} == DEFAULTS_OF_THE_CONTRACT
    assert set(given["parallel"].values()) == {1, False, None}


@pytest.mark.parametrize("words", WORDS_OF_THE_CONTRACT)
def test_words(words: Any) -> None:
    assert " ".join(words) == WORDS_OF_THE_CONTRACT[words]


def test_a_scenario_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Scenario(model="gpt2"), "micro_batch_size", 2)  # noqa: B010


@pytest.mark.parametrize("largest", [1, LARGEST_SIZE])
def test_sizes_at_the_bounds(largest: int) -> None:
    assert Scenario(model="gpt2", sequence_length=largest).sequence_length == largest


@pytest.mark.parametrize("value", [0, -1, True, False, 2.0, 2.5, "2", math.nan, math.inf, LARGEST_SIZE + 1, [1], {}])
def test_a_size_is_a_positive_whole_number(value: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        Scenario(model="gpt2", micro_batch_size=value)
    assert (refusal.value.field, str(refusal.value.value)) == ("micro_batch_size", str(value))


@pytest.mark.parametrize("value", [1, 1.0, -0.1, True, False, "0.1", math.nan, math.inf])
def test_a_dropout_is_a_probability_below_one(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^dropout = "):
        Scenario(model="gpt2", dropout=value)
    with pytest.raises(ConfigError, match=r"^adapter\.dropout = "):
        Adapter(dropout=value)


def test_whole_numbers_are_probabilities_and_scales_too() -> None:
    scenario = Scenario(model="gpt2", dropout=0, adapter=Adapter(alpha=32))
    assert (scenario.dropout, scenario.adapter) == (0.0, Adapter(alpha=32.0))


@pytest.mark.parametrize("value", [0, -1.0, "16", True, math.nan, math.inf])
def test_alpha_is_a_positive_number(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^adapter\.alpha = "):
        Adapter(alpha=value)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({}, "model", "is required"),
        ({"model": None}, "model", "string"),
        ({"model": 5}, "model", "string"),
        ({"model": "gpt2", "batchsize": 4}, "batchsize", "unknown field; known fields: model, gpu"),
        ({"model": "gpt2", "adapter": {"r": 4}}, "adapter.r", "unknown field; known fields: kind, rank"),
        ({"model": "gpt2", "parallel": {"tp": 4}}, "parallel.tp", "unknown field; known fields: tensor, pipeline"),
        ({"model": "gpt2", "adapter": "lora"}, "adapter", "should be an object"),
        ({"model": "gpt2", "adapter": {"kind": "dora"}}, "adapter.kind", "'lora', 'qlora'"),
        ({"model": "gpt2", "adapter": []}, "adapter", "should be an object"),
        ({"model": "gpt2", "adapter": {"rank": 0}}, "adapter.rank", "greater than or equal to 1"),
        ({"model": "gpt2", "adapter": {"target_modules": []}}, "adapter.target_modules", "at least 1"),
        ({"model": "gpt2", "parallel": None}, "parallel", "should be an object"),
        ({"model": "gpt2", "parallel": {"zero_stage": 4}}, "parallel.zero_stage", "less than or equal to 3"),
        ({"model": "gpt2", "parallel": {"sequence_parallel": "yes"}}, "parallel.sequence_parallel", "boolean"),
        ({"model": "gpt2", "precision": "fp8"}, "precision", "'fp16-autocast', 'bf16-weights-autocast'"),
        ({"model": "gpt2", "optimizer": None}, "optimizer", "'adamw', 'adamw-fused'"),
        ({"model": "gpt2", "gpu": 80}, "gpu", "string"),
    ],
)
def test_refusals_name_the_field_and_what_is_right(fields: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Scenario(**fields)
    assert refusal.value.field == field
    assert words in refusal.value.expected


@pytest.mark.parametrize("body", ["gpt2", None, 5, ["gpt2"]])
def test_a_scenario_is_an_object(body: Any) -> None:
    with pytest.raises(ConfigError, match=r"^scenario = .*should be an object"):
        Scenario.model_validate(body)


def strings(*items: tuple[str, str]) -> Scenario:
    return scenario_from_strings([("model", "gpt2"), *items])


def test_dotted_names_reach_into_objects() -> None:
    scenario = strings(("adapter.rank", "4"), ("adapter.dropout", "0.1"), ("adapter.target_modules", "c_attn,c_fc"))
    assert scenario.adapter == Adapter(rank=4, dropout=0.1, target_modules=("c_attn", "c_fc"))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("micro_batch_size", "8", 8),
        ("dropout", "0", 0.0),
        ("sequence_length", "null", None),
        ("precision", "bf16", Precision.BF16),
        ("gpu", "null", "null"),
        ("gpu", "4090", "4090"),
        ("model", "175", "175"),
        ("model", '{"model_type": "gpt2"}', {"model_type": "gpt2"}),
        ("model", "{not JSON", "{not JSON"),
    ],
)
def test_texts(name: str, text: str, value: Any) -> None:
    items = {"model": "gpt2", name: text}
    assert getattr(scenario_from_strings(items.items()), name) == value


@pytest.mark.parametrize(
    ("items", "field", "words"),
    [
        ([("dropout", "0.1"), ("dropout", "0.2")], "dropout", "is given twice"),
        ([("adapter.rank", "4"), ("adapter", "{}")], "adapter", "is given twice"),
        ([("adapter", "4"), ("adapter.rank", "4")], "adapter.rank", "adapter was already given"),
        ([("adapter.rank.size", "4")], "adapter.rank", "integer"),
        ([("", "4")], "scenario", "unknown field"),
        ([("micro_batch_size", "")], "micro_batch_size", "integer"),
        ([("micro_batch_size", "8.0")], "micro_batch_size", "integer"),
        ([("micro_batch_size", "9" * 5000)], "micro_batch_size", "integer"),
        ([("micro_batch_size", "[" * 100_000)], "micro_batch_size", "integer"),
        ([("dropout", "NaN")], "dropout", "finite"),
        ([("dropout", "Infinity")], "dropout", "finite"),
    ],
)
def test_texts_that_are_refused(items: list[tuple[str, str]], field: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        strings(*items)
    assert refusal.value.field == field
    assert words in refusal.value.expected


sizes = st.integers(1, LARGEST_SIZE)
scenarios = st.builds(
    Scenario,
    model=st.sampled_from(("gpt2", "llama-3.1-8b")),
    gpu=st.none() | st.just("h100-sxm-80gb"),
    micro_batch_size=sizes,
    sequence_length=st.none() | sizes,
    precision=st.sampled_from(Precision),
    optimizer=st.sampled_from(Optimizer),
    recompute=st.sampled_from(Recompute),
    dropout=st.none() | st.floats(0, 1, exclude_max=True),
    adapter=st.none()
    | st.builds(
        Adapter,
        rank=sizes,
        alpha=st.floats(1e-3, 1e3),
        target_modules=st.none() | st.just(("q_proj",)),
        dtype=st.sampled_from(AdapterDType),
    ),
)


@given(scenario=scenarios)
def test_json_and_back(scenario: Scenario) -> None:
    assert Scenario.model_validate_json(scenario.model_dump_json()) == scenario


@given(scenario=scenarios)
def test_strings_and_back(scenario: Scenario) -> None:
    items = list(as_strings(scenario.model_dump(mode="json", exclude_defaults=True)))
    assert scenario_from_strings(items) == scenario


def as_strings(fields: dict[str, Any], owner: str = "") -> Any:
    if owner and not fields:
        yield owner.removesuffix("."), "{}"
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from as_strings(value, f"{owner}{name}.")
        else:
            yield f"{owner}{name}", ",".join(value) if isinstance(value, list) else str(value)


def test_messages_quote_any_value_briefly() -> None:
    nested: list[Any] = []
    for _ in range(10_000):
        nested = [nested]
    for value in (nested, "x" * 10**6, 10**4000, {str(index): index for index in range(10**5)}, math.nan):
        assert len(shown(value)) <= LONGEST_QUOTE
    assert shown("llama-4") == "'llama-4'"
