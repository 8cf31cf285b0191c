"""What a case is."""

from copy import deepcopy

from calc import Adapter, Scenario, estimate
from calc.plan import PAGED_FIELDS
from calc.scenario import LINEAR_AND_FUSED_ATTENTION
from validation import checkpointing
from validation.cases import (
    ADAPTER,
    STEP,
    as_object,
    case,
    case_id,
    config_of,
    cut,
    retied,
)
from validation.models import build_job

NOT_OF_THE_JOB = {
    *("model", "gpu", "num_gpus", "parallel", "torch_compile"),
    *PAGED_FIELDS,
} - {"kv_cache_dtype"}
"""Read by no real model's run: what it runs on, what is only estimated, types that a case says as its precision."""


def test_every_field_that_a_job_may_read_has_its_default() -> None:
    assert STEP.keys() == Scenario.model_fields.keys() - NOT_OF_THE_JOB


def test_left_out_fields_mean_the_scenarios_defaults() -> None:
    default = Scenario(model="gpt2").model_dump(mode="json")
    assert {name: default[name] for name in STEP} == STEP
    assert Adapter().model_dump(mode="json") == ADAPTER


def test_left_out_operators_are_the_scenarios() -> None:
    assert checkpointing.LINEAR_AND_FUSED_ATTENTION == LINEAR_AND_FUSED_ATTENTION


def test_a_cut_model_says_so() -> None:
    short = cut("llama-3.1-8b", 8)
    assert short["num_hidden_layers"] == 8
    assert case(short, 1, 16).id == "llama-3.1-8b-8-of-32-layers?micro_batch_size=1&sequence_length=16"
    assert config_of({"model": "llama-3.1-8b"})["num_hidden_layers"] == 32


def test_a_model_without_its_tie_has_an_embedding_more_and_says_so() -> None:
    apart, shared = retied("gpt2"), retied(cut("llama-3.1-8b", 1))
    assert case(apart, 1, 16).id.startswith("gpt2-untied?")
    assert case(shared, 1, 16).id.startswith("llama-3.1-8b-1-of-32-layers-tied?")
    gpt2, untied = (estimate(Scenario(model=model, sequence_length=16)).parameters.total for model in ("gpt2", apart))
    assert untied - gpt2 == 50257 * 768
    assert retied(retied("gpt2"))["tie_word_embeddings"]


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
