"""LoRA as a transformation of the ledger."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc import Adapter, Estimate, Scenario, estimate
from calc.adapters.facts import LORA_TARGETS
from calc.closed_forms import lora_parameters
from calc.ledger import Component, Kind
from calc.scenario import AdapterDType
from tests.calc.adapters.toys import GPT2, LLAMA

LAYERS = 3
LLAMA_LINEARS = {
    "q_proj": (64, 64),
    "k_proj": (64, 32),
    "v_proj": (64, 32),
    "o_proj": (64, 64),
    "gate_proj": (64, 100),
    "up_proj": (64, 100),
    "down_proj": (100, 64),
}


def answered(model: dict[str, Any] | str = LLAMA, adapter: Adapter | None = None, **choices: Any) -> Estimate:
    sizes: dict[str, Any] = {"micro_batch_size": 2, "sequence_length": 33}
    return estimate(Scenario(model=model, adapter=adapter, **sizes | choices))


@given(rank=st.integers(1, 100), targets=st.sets(st.sampled_from(sorted(LLAMA_LINEARS)), min_size=1))
def test_trainable_parameters(rank: int, targets: set[str]) -> None:
    parameters = answered(adapter=Adapter(rank=rank, target_modules=tuple(sorted(targets)))).parameters
    added = LAYERS * sum(rank * sum(LLAMA_LINEARS[target]) for target in targets)
    assert parameters.trainable == added
    assert parameters.by_component[Component.ADAPTER] == added
    assert parameters.frozen == answered().parameters.total
    assert parameters.total == parameters.frozen + parameters.trainable


@pytest.mark.parametrize(
    ("model", "targets", "sizes"),
    [
        (GPT2, ("c_attn",), [(64, 3 * 64)]),
        (GPT2, ("c_proj",), [(64, 64), (4 * 64, 64)]),  # attention's and the MLP's bear the same name
        (GPT2, ("attn.c_proj",), [(64, 64)]),
        (LLAMA, ("mlp.down_proj", "q_proj"), [(100, 64), (64, 64)]),
    ],
)
def test_targets_are_ends_of_paths(model: Any, targets: tuple[str, ...], sizes: list[tuple[int, int]]) -> None:
    expected = LAYERS * sum(lora_parameters(in_features=inner, out_features=outer, rank=8) for inner, outer in sizes)
    assert answered(model, Adapter(target_modules=targets)).parameters.trainable == expected


@pytest.mark.parametrize(("model", "targets"), [(GPT2, ("c_attn",)), (LLAMA, ("q_proj", "v_proj"))])
def test_pefts_default_targets(model: Any, targets: tuple[str, ...]) -> None:
    assert targets in LORA_TARGETS.values()
    assert (
        answered(model, Adapter()).parameters.trainable
        == answered(model, Adapter(target_modules=targets)).parameters.trainable
    )


def test_the_head_is_adapted_once() -> None:
    adapted = answered(adapter=Adapter(rank=2, target_modules=("lm_head",)))
    assert adapted.parameters.trainable == 2 * (64 + 333)


@pytest.mark.parametrize("dtype", AdapterDType)
def test_its_weights_have_the_type_asked_for(dtype: AdapterDType) -> None:
    adapter = Adapter(dtype=dtype)
    entries = [entry for entry in answered(adapter=adapter, precision="bf16").tensors if ".lora_" in entry.name]
    weights = {entry.dtype for entry in entries if entry.kind is Kind.PARAMETERS}
    states = {entry.dtype for entry in entries if entry.kind is Kind.OPTIMIZER_STATES}
    assert weights == states == {"fp32" if dtype is AdapterDType.FP32 else "bf16"}


def test_only_the_adapter_has_states_and_gradients() -> None:
    for entry in answered(adapter=Adapter()).tensors:
        if entry.kind in {Kind.OPTIMIZER_STATES, Kind.GRADIENTS}:
            assert ".lora_" in entry.name


def test_frozen_weights_are_not_cached_by_autocast() -> None:
    casts = [entry.name for entry in answered(adapter=Adapter()).tensors if entry.kind is Kind.AUTOCAST_WEIGHTS]
    assert casts
    assert all(".lora_" in name for name in casts)


def test_flops() -> None:
    plain, adapted = answered(precision="bf16").flops, answered(adapter=Adapter(rank=8), precision="bf16").flops
    tokens = 2 * 33
    branch = 2 * tokens * 8 * LAYERS * ((64 + 64) + (64 + 32))  # A and B of q_proj and v_proj
    assert adapted.forward == plain.forward + branch
    # Frozen: no gradient of a linear's weight, so half of their backward; of the adapter both, but the first layer's
    # input needs none: its A, q, k and v hand nothing on.
    qkv_first = 2 * tokens * 64 * (64 + 32 + 32)
    first_a = 2 * tokens * 8 * (64 + 64)
    attention = 5 * 2 * 2 * 4 * 33 * 33 * 16 * LAYERS  # flash: five products
    linears = 2 * tokens * (LAYERS * sum(inner * outer for inner, outer in LLAMA_LINEARS.values()) + 64 * 333)
    assert adapted.backward == linears - qkv_first + attention + 2 * branch - first_a


def test_dropout_keeps_a_mask_per_adapted_module() -> None:
    plain, dropped = (answered(adapter=Adapter(dropout=dropout)) for dropout in (0.0, 0.1))
    masks = [entry for entry in dropped.tensors if "lora_dropout output.mask" in entry.name]
    assert sum(entry.count for entry in masks) == 2 * (LAYERS - 1)  # the first layer's input needs no gradient
    assert {entry.dtype for entry in masks} == {"bool"}
    assert dropped.memory.saved_activation_bytes > plain.memory.saved_activation_bytes


def test_it_saves_memory() -> None:
    full, adapted = answered("llama-3.2-1b"), answered("llama-3.2-1b", Adapter())
    assert adapted.memory.peak_allocated_bytes < full.memory.peak_allocated_bytes / 2
    assert adapted.memory.persistent_bytes["optimizer_states"] < full.memory.persistent_bytes["optimizer_states"] / 100


@given(rank=st.integers(1, 10**9))
def test_rank_has_no_bound_but_the_sizes(rank: int) -> None:
    assert answered(adapter=Adapter(rank=rank)).parameters.trainable == rank * LAYERS * (128 + 96)


def test_all_linear_is_every_linear_but_the_head() -> None:
    everything = answered(adapter=Adapter(target_modules=("all-linear",))).parameters
    listed = answered(adapter=Adapter(target_modules=tuple(LLAMA_LINEARS))).parameters
    assert everything == listed
    assert Adapter(target_modules="all-linear") == Adapter(target_modules=("all-linear",))  # pyright: ignore
