"""An adapter in some layers only (peft's layers_to_transform)."""

from itertools import pairwise
from typing import Any

import pytest

from calc import Adapter, ConfigError, Estimate, Scenario, estimate
from calc.scenario import scenario_from_strings
from tests.calc.adapters.toys import LLAMA

LAYERS = LLAMA | {"num_hidden_layers": 5}
PER_LAYER = 8 * (64 + 64) + 8 * (64 + 32)
"""LoRA of rank 8 on q_proj and v_proj."""


def answered(kind: str = "lora", **choices: Any) -> Estimate:
    fields = {name: choices.pop(name) for name in Adapter.model_fields if name in choices}
    adapter = Adapter(**{"kind": kind, **fields})
    return estimate(Scenario(model=LAYERS, adapter=adapter, **{"sequence_length": 33, "precision": "bf16", **choices}))


@pytest.mark.parametrize("kind", ["lora", "qlora"])
@pytest.mark.parametrize("layers", [(0,), (1, 3), (4, 0, 2)])
def test_only_these_layers_are_trained(kind: str, layers: tuple[int, ...]) -> None:
    parameters = answered(kind, layers_to_transform=layers).parameters
    assert parameters.trainable == len(layers) * PER_LAYER
    assert parameters.frozen == answered(kind).parameters.frozen


def test_backward_ends_at_the_first_of_them() -> None:
    backward = [answered(layers_to_transform=(first,)).flops.backward for first in range(5)]
    assert backward == sorted(backward, reverse=True)
    steps = {before - after for before, after in pairwise(backward[1:])}
    assert len(steps) == 1  # each layer less costs as much


def test_layers_before_them_keep_nothing() -> None:
    kept = answered(layers_to_transform=(4,)).memory.saved_activation_bytes_per_layer
    assert isinstance(kept, list)
    assert kept[0] == 0
    assert kept[-1] > 0


def test_all_of_them_is_the_default() -> None:
    assert answered(layers_to_transform=tuple(range(5))).memory.phases == answered().memory.phases


def test_an_address_writes_them_as_text() -> None:
    asked = scenario_from_strings([("model", "gpt2"), ("adapter.kind", "lora"), ("adapter.layers_to_transform", "0,2")])
    assert asked.adapter
    assert asked.adapter.layers_to_transform == (0, 2)


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"layers_to_transform": (1, 5)}, r"layers_to_transform = \[1, 5\]: should be numbers of layers, from 0 to 4"),
        ({"target_modules": ("all-linear",)}, "should be none with target_modules = all-linear"),
        ({"modules_to_save": ("lm_head",)}, "is not supported yet with modules_to_save"),
        ({"kind": "ia3"}, r"adapter\.layers_to_transform = .*: is not read with adapter\.kind = ia3"),
        ({"layers_to_transform": (-1,)}, r"adapter\.layers_to_transform\.0 = -1"),
        ({"layers_to_transform": ("one",)}, r"adapter\.layers_to_transform\.0 = 'one'"),
    ],
)
def test_what_it_does_not_go_with(choices: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        answered(**{"layers_to_transform": (1,), **choices})
