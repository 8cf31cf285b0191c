"""The cases that are traced and measured."""

from copy import deepcopy
from urllib.parse import parse_qsl

import pytest

from calc import Adapter, Scenario, estimate
from calc.scenario import scenario_from_strings
from validation.cases import (
    ADAPTER,
    FIRST,
    HOLDOUT,
    STEP,
    SUITES,
    TRACES,
    Case,
    as_object,
    case,
    case_id,
    config_of,
    cut,
)
from validation.models import build_job

EVERY_CASE = [each for suite in SUITES.values() for each in suite]


def test_left_out_fields_mean_the_scenarios_defaults() -> None:
    default = Scenario(model="gpt2").model_dump(mode="json")
    assert {name: default[name] for name in STEP} == STEP
    assert Adapter().model_dump(mode="json") == ADAPTER


@pytest.mark.parametrize("suite", SUITES)
def test_no_case_is_asked_twice_in_a_suite(suite: str) -> None:
    ids = [each.id for each in SUITES[suite]]
    assert len(set(ids)) == len(ids)


def test_the_holdout_shares_no_case_with_what_formulas_are_tuned_on() -> None:
    assert {each.id for each in HOLDOUT}.isdisjoint(each.id for each in FIRST + TRACES)
    assert all(each.holdout for each in HOLDOUT)
    assert not any(each.holdout for each in FIRST)


@pytest.mark.parametrize("asked", EVERY_CASE, ids=lambda each: each.id)
def test_the_formulas_answer_every_case(asked: Case) -> None:
    assert estimate(Scenario(**asked.scenario)).memory.peak_allocated_bytes > 0


@pytest.mark.parametrize("asked", [each for each in EVERY_CASE if isinstance(each.scenario["model"], str)])
def test_an_id_is_the_scenario_as_an_address_has_it(asked: Case) -> None:
    model, _, query = asked.id.partition("?")
    assert scenario_from_strings([("model", model), *parse_qsl(query)]) == Scenario(**asked.scenario)


def test_a_cut_model_says_so() -> None:
    short = cut("llama-3.1-8b", 8)
    assert short["num_hidden_layers"] == 8
    assert case(short, 1, 16).id == "llama-3.1-8b-8-of-32-layers?micro_batch_size=1&sequence_length=16"
    assert config_of({"model": "llama-3.1-8b"})["num_hidden_layers"] == 32


def test_an_id_does_not_depend_on_the_order_of_fields() -> None:
    assert case("gpt2", 1, 16, optimizer="sgd", adapter={"rank": 2, "kind": "lora"}).id == case_id(
        {
            "adapter": {"kind": "lora", "rank": 2},
            "optimizer": "sgd",
            "sequence_length": 16,
            "micro_batch_size": 1,
            "model": "gpt2",
        }
    )


def test_configs_without_a_name_are_told_apart() -> None:
    ids = {case_id({"model": {"model_type": "gpt2", "n_layer": layers}}) for layers in (1, 2)}
    assert len(ids) == 2


def test_a_job_reads_all_fields_of_a_scenario() -> None:
    asked = as_object({"model": "gpt2", "micro_batch_size": 3, "adapter": {"kind": "lora", "rank": 4}})
    assert (asked.micro_batch_size, asked.optimizer, asked.adapter.rank, asked.adapter.dtype) == (3, "adamw", 4, "fp32")


def test_a_job_leaves_its_config_alone() -> None:
    asked = case(cut("llama-3.2-1b", 1) | {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64}, 1, 8)
    before = deepcopy(asked.scenario)
    build_job(as_object(asked.scenario), config_of(asked.scenario), "meta", "eager")
    assert asked.scenario == before
