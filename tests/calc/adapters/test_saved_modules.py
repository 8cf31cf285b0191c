"""Modules trained as a whole beside an adapter: a copy of each, the original frozen."""

from typing import Any

import pytest

from calc import Adapter, ConfigError, Estimate, Scenario, estimate
from tests.calc.adapters.toys import GPT2

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 100,
    "vocab_size": 333,
    "tie_word_embeddings": False,
}
TIED = LLAMA | {"tie_word_embeddings": True}
EMBEDDING = 333 * 64


def answered(model: dict[str, Any], *saved: str, **choices: Any) -> Estimate:
    adapter = Adapter(modules_to_save=saved or None)
    return estimate(Scenario(model=model, adapter=adapter, sequence_length=33, **choices))


@pytest.mark.parametrize(
    ("model", "saved", "copied"),
    [
        (LLAMA, ("lm_head",), EMBEDDING),
        (LLAMA, ("embed_tokens", "lm_head"), 2 * EMBEDDING),
        (TIED, ("lm_head",), EMBEDDING),
        (TIED, ("embed_tokens", "lm_head"), 2 * EMBEDDING),  # two copies of the one original
        (LLAMA, ("norm",), (1 + 2 * 3) * 64),  # the ends of paths: the layers' norms too
        (LLAMA, ("input_layernorm",), 3 * 64),
        (GPT2, ("ln_f",), 2 * 64),
        (GPT2, ("wte", "wpe"), EMBEDDING + 64 * 64),
    ],
)
def test_a_copy_is_trained_and_the_original_stays(model: Any, saved: tuple[str, ...], copied: int) -> None:
    without, parameters = answered(model).parameters, answered(model, *saved).parameters
    assert parameters.trainable == without.trainable + copied
    assert parameters.frozen == without.frozen


def test_one_name_needs_no_list() -> None:
    assert Adapter(modules_to_save="lm_head") == Adapter(modules_to_save=("lm_head",))  # pyright: ignore


def test_a_trained_embedding_makes_every_gradient_needed() -> None:
    plain, trained = answered(LLAMA).flops, answered(LLAMA, "embed_tokens").flops
    assert trained.backward > plain.backward
    assert trained.forward == plain.forward


def test_the_copys_cast_is_cached_the_frozen_ones_are_not() -> None:
    casts = {entry.name for entry in answered(LLAMA, "lm_head").tensors if entry.kind == "autocast_weights"}
    assert "lm_head.weight cast" in casts
    assert "self_attn.o_proj.weight cast" not in casts


@pytest.mark.parametrize("name", ["mlp", "nothing", "self_attn"])
def test_a_name_without_weights_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"adapter\.modules_to_save = '{name}': names no module with weights"):
        answered(LLAMA, name)


def test_a_target_cannot_be_saved_too() -> None:
    adapter = Adapter(target_modules=("lm_head",), modules_to_save=("lm_head",))
    with pytest.raises(ConfigError, match=r"adapter\.modules_to_save = 'lm_head': is among adapter\.target_modules"):
        estimate(Scenario(model=LLAMA, adapter=adapter))
