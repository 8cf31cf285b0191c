"""The key/value cache as published designs would keep it."""

from typing import Any

import pytest

from calc import ConfigError, Scenario, cache_designs, closed_forms
from calc.scenario import Task


def designs(model: str, **fields: Any) -> dict[str, int]:
    asked = {"batch_size": 16, "prompt_length": 8000, "output_length": 192, "task": Task.INFERENCE} | fields
    return {design.key: design.cache_bytes for design in cache_designs(Scenario(model=model, **asked))}


@pytest.mark.parametrize(
    ("model", "key"),
    [("llama-2-7b", "mha"), ("llama-3.1-70b", "gqa"), ("starcoderbase-1b", "mqa"), ("deepseek-v3", "mla")],
)
def test_a_model_of_that_design_keeps_as_much(model: str, key: str) -> None:
    """The formula against the ledger."""
    found = designs(model, prompt_length=1000, output_length=24)
    assert found[key] == found["own"]


def test_a_window_in_each_layer() -> None:
    found = designs("mistral-7b-v0.1")
    assert found["window"] == found["own"] == 2 * 32 * 16 * 4096 * 8 * 128 * 2


def test_layers_that_share() -> None:
    """Two thousand tokens of 32 layers: a cache for two; one for all, and sixteen windows."""
    found = designs("llama-3.1-8b", batch_size=1, prompt_length=2000, output_length=0)
    token = 2 * 8 * 128 * 2
    assert found["own"] == 32 * 2000 * token
    assert found["cla"] == 16 * 2000 * token
    assert found["yoco"] == (2000 + 16 * 1024) * token


def test_the_papers_numbers() -> None:
    """DeepSeek-V2's 576 numbers a layer; 17 caches for 33 layers; one for all."""
    v2 = closed_forms.latent_kv_cache_bytes(num_layers=60, batch_size=1, num_tokens=1, latent_dim=512, rotary_dim=64)
    sizes: dict[str, Any] = {"batch_size": 1, "num_tokens": 2**20, "num_key_value_heads": 8, "head_dim": 128}
    whole = closed_forms.kv_cache_bytes(num_layers=33, **sizes)
    shared = closed_forms.cross_layer_kv_cache_bytes(num_layers=33, layers_per_cache=2, **sizes)
    once = closed_forms.yoco_kv_cache_bytes(num_layers=32, window=0, **sizes)
    assert v2 == 60 * 576 * 2
    assert (shared * 33, once * 33) == (whole * 17, whole)


@pytest.mark.parametrize(("fields", "field"), [({"task": Task.TRAINING}, "task"), ({"page_size": 16}, "page_size")])
def test_other_questions_are_refused(fields: dict[str, Any], field: str) -> None:
    only = {"batch_size": None, "prompt_length": None, "output_length": None} if field == "task" else {}
    with pytest.raises(ConfigError) as refusal:
        designs("llama-3.1-8b", **only, **fields)
    assert refusal.value.field == field
