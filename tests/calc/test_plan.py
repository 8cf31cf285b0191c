"""What a Scenario comes to on an architecture: the workload's sizes, the plan's choices, and pairs that cannot be."""

from typing import Any

import pytest

from calc import Adapter, ConfigError, Scenario
from calc.architecture import Architecture, Dropouts
from calc.dtype import DType
from calc.hf_config import architecture
from calc.plan import NUMERICS, Plan, Workload, resolve
from calc.scenario import Attention, Implementation, Optimizer, Precision

GPT2 = architecture({"model_type": "gpt2"})
LLAMA = architecture({"model_type": "llama", "max_position_embeddings": 131072})
MISTRAL = architecture({"model_type": "mistral"})
MIXED = architecture({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3})
RECIPES = (Precision.ZERO_16, Precision.MEGATRON_18, Precision.TEXTBOOK_20)


def wide_llama(head_dim: int) -> Architecture:
    return architecture({"model_type": "llama", "head_dim": head_dim})


def resolved(model: Architecture, **choices: Any) -> tuple[Architecture, Workload, Plan]:
    return resolve(Scenario(model="its architecture is given", **choices), model)


def planned(model: Architecture, **choices: Any) -> Plan:
    return resolved(model, **choices)[2]


def refusal(model: Architecture, **choices: Any) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        resolved(model, **choices)
    return refused.value


def test_defaults() -> None:
    assert resolved(LLAMA)[1:] == (Workload(micro_batch_size=1, sequence_length=4096), Plan())


@pytest.mark.parametrize(
    ("model", "asked", "length"),
    [(GPT2, None, 1024), (LLAMA, None, 4096), (GPT2, 1024, 1024), (LLAMA, 200_000, 200_000)],
    ids=["the model's maximum", "at most 4096", "all learned positions", "rotary positions have no end"],
)
def test_sequence_length(model: Architecture, asked: int | None, length: int) -> None:
    assert resolved(model, sequence_length=asked)[1].sequence_length == length


def test_learned_positions_have_an_end() -> None:
    assert str(refusal(GPT2, sequence_length=1025)) == (
        "sequence_length = 1025: should be at most 1024: the model has that many positions"
    )


@pytest.mark.parametrize(
    ("model", "probability", "dropouts"),
    [
        (GPT2, None, Dropouts(embedding=0.1, attention=0.1, residual=0.1)),
        (GPT2, 0.3, Dropouts(embedding=0.3, attention=0.3, residual=0.3)),
        (GPT2, 0, Dropouts(embedding=0, attention=0, residual=0)),
        (LLAMA, 0.3, Dropouts(attention=0.3)),
    ],
)
def test_one_dropout_is_for_all_the_family_has(
    model: Architecture, probability: float | None, dropouts: Dropouts
) -> None:
    assert resolved(model, dropout=probability)[0].dropouts == dropouts


@pytest.mark.parametrize(
    ("precision", "weights", "compute"),
    [
        (Precision.FP32, DType.FP32, DType.FP32),
        (Precision.BF16, DType.BF16, DType.BF16),
        (Precision.FP16, DType.FP16, DType.FP16),
        (Precision.BF16_AUTOCAST, DType.FP32, DType.BF16),
        (Precision.FP16_AUTOCAST, DType.FP32, DType.FP16),
        *((recipe, DType.BF16, DType.BF16) for recipe in RECIPES),
    ],
)
def test_types(precision: Precision, weights: DType, compute: DType) -> None:
    numerics = Plan(precision=precision).numerics
    assert (numerics.weights, numerics.compute) == (weights, compute)
    assert numerics.autocast == ("autocast" in precision)


def test_every_precision_has_types() -> None:
    assert NUMERICS.keys() == set(Precision)


@pytest.mark.parametrize("precision", Precision)
def test_only_recipes_have_recipes(precision: Precision) -> None:
    recipe = Plan(precision=precision).recipe
    assert (recipe is not None) == (precision in RECIPES)
    if recipe is not None:
        assert precision.endswith(f"-{recipe.bytes_per_parameter}")


@pytest.mark.parametrize("precision", RECIPES)
@pytest.mark.parametrize("optimizer", [Optimizer.SGD, Optimizer.SGD_MOMENTUM])
def test_recipes_are_adams(precision: Precision, optimizer: Optimizer) -> None:
    refused = refusal(LLAMA, precision=precision, optimizer=optimizer)
    assert (refused.field, refused.value) == ("optimizer", optimizer.value)
    assert precision in refused.expected


def test_auto_is_flash_where_its_kernel_runs() -> None:
    assert planned(LLAMA).attention is Attention.FLASH
    assert planned(GPT2, precision="fp16").attention is Attention.FLASH


def test_auto_is_eager_in_the_papers_block() -> None:
    choices = {"implementation": "megatron", "precision": "bf16"}
    assert planned(GPT2, **choices).attention is Attention.EAGER
    assert planned(GPT2, **choices, attention="flash").attention is Attention.FLASH


@pytest.mark.parametrize(
    ("model", "choices", "obstacle", "instead"),
    [
        (LLAMA, {"precision": "fp32"}, "flash kernel takes fp16 and bf16, not precision = fp32", "efficient"),
        (wide_llama(264), {}, "flash kernel takes head sizes up to 256, not 264", "efficient"),
        (wide_llama(260), {}, "flash kernel takes head sizes up to 256, not 260", "math"),
        (wide_llama(260), {}, "efficient kernel takes head sizes that are multiples of 8 in bf16, not 260", "math"),
        (wide_llama(102), {"precision": "fp32"}, "efficient kernel takes head sizes that are multiples of 4", "math"),
        (MISTRAL, {"precision": "fp32"}, "as many key/value heads as query heads, not 8 for 32", "math"),
        (MISTRAL, {"sequence_length": 4096}, "a sliding window of 4096 tokens needs a mask", "efficient"),
    ],
)
def test_a_kernel_that_does_not_take_the_step_is_refused_and_auto_is_another(
    model: Architecture, choices: dict[str, Any], obstacle: str, instead: str
) -> None:
    asked = "efficient" if "efficient kernel" in obstacle or "key/value" in obstacle else "flash"
    choices = {"sequence_length": 16} | choices
    refused = refusal(model, attention=asked, **choices)
    assert (refused.field, refused.value) == ("attention", asked)
    assert obstacle in refused.expected
    assert refused.expected.endswith("; choose auto")
    assert planned(model, **choices).attention == instead
    assert planned(model, attention=instead, **choices).attention == instead
    assert planned(model, attention="eager", **choices).attention is Attention.EAGER


def test_auto_stays_auto_where_layers_take_different_kernels() -> None:
    assert planned(MIXED, sequence_length=63).attention is Attention.FLASH
    assert planned(MIXED, sequence_length=64).attention is Attention.AUTO
    assert planned(MIXED, sequence_length=64, attention="math").attention is Attention.MATH


@pytest.mark.parametrize("attention", ["efficient", "math"])
def test_the_papers_block_knows_flash_and_its_own_attention(attention: str) -> None:
    refused = refusal(GPT2, implementation="megatron", precision="bf16", attention=attention)
    assert (refused.field, refused.value) == ("attention", attention)


@pytest.mark.parametrize("head_dim", [8, 100, 256])
def test_the_bounds_of_flash(head_dim: int) -> None:
    assert planned(architecture({"model_type": "llama", "head_dim": head_dim})).attention is Attention.FLASH


def test_a_sequence_inside_the_window_needs_no_mask() -> None:
    assert planned(MISTRAL, sequence_length=4095).attention is Attention.FLASH


def test_choices_are_handed_on() -> None:
    adapter = Adapter(rank=4)
    _, workload, plan = resolved(
        GPT2,
        micro_batch_size=3,
        gradient_accumulation_steps=5,
        precision="fp16",
        optimizer="sgd",
        recompute="full",
        implementation="megatron",
        adapter=adapter,
    )
    assert (workload.micro_batch_size, workload.gradient_accumulation_steps) == (3, 5)
    assert (plan.precision, plan.optimizer, plan.recompute, plan.adapter) == ("fp16", "sgd", "full", adapter)
    assert plan.implementation is Implementation.MEGATRON
