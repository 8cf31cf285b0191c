"""What families of remote code have of their own, put into a model that transformers builds, against its trace."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.phi3.modeling_phi3 import Phi3Attention

from calc import Scenario, hf_config
from calc.architecture import Architecture
from calc.families import FAMILIES
from calc.families.fields import Fields
from calc.hf_config import architecture
from tests.validation.families import NOT_BUILT, config_of
from tests.validation.random_steps import agree
from validation.trace import trace

BATCH: dict[str, Any] = {"micro_batch_size": 2, "sequence_length": 24, "optimizer": "sgd"}
STEPS = (
    {"precision": "bf16", "attention": "eager"},
    {"precision": "bf16-autocast", "attention": "auto", "recompute": "full"},
    {"precision": "fp32", "attention": "auto", "gradient_accumulation_steps": 2},
)


class NormHead(torch.nn.Linear):
    """Baichuan 2's (modeling_baichuan.py), in training."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(input, torch.nn.functional.normalize(self.weight))


class ScaledHead(torch.nn.Linear):
    """MiniCPM's: `self.lm_head(hidden_states / (hidden_size / dim_model_base))`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input / 9.0)


def with_head(monkeypatch: pytest.MonkeyPatch, head: type[torch.nn.Linear]) -> None:
    """Llama gets this head."""
    made = LlamaForCausalLM.__init__

    def make(self: LlamaForCausalLM, config: Any) -> None:
        made(self, config)
        self.lm_head = head(config.hidden_size, config.vocab_size, bias=False)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", make)


def with_read(monkeypatch: pytest.MonkeyPatch, change: Callable[[Architecture], Architecture]) -> None:
    """Configs are read as `change` then makes of them."""
    read = hf_config.family

    def changed(model_type: str) -> Callable[[Fields], Architecture]:
        return lambda fields: change(read(model_type)(fields))

    monkeypatch.setattr(hf_config, "family", changed)


def agrees(model_type: str, step: dict[str, Any]) -> None:
    config = config_of(model_type) | {"tie_word_embeddings": False}
    scenario = Scenario(model=config, **BATCH, **step)
    agree(scenario, trace(scenario, config))


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize(("head", "fact"), [(NormHead, "head_normalised"), (ScaledHead, "head_input_scaled")])
def test_heads(head: type[torch.nn.Linear], fact: str, step: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with_head(monkeypatch, head)
    with_read(monkeypatch, lambda read: replace(read, kind=replace(read.kind, **{fact: True})))
    agrees("llama", step)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_one_projection_with_biases(step: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """ChatGLM's query_key_value, in Phi-3."""
    made = Phi3Attention.__init__

    def make(self: Phi3Attention, config: Any, layer_idx: int | None = None) -> None:
        made(self, config, layer_idx)
        self.qkv_proj = torch.nn.Linear(self.qkv_proj.in_features, self.qkv_proj.out_features, bias=True)

    def biased(read: Architecture) -> Architecture:
        layers = ((replace(each, kind=replace(each.kind, query_key_value_bias=True)), n) for each, n in read.layers)
        return replace(read, layers=tuple(layers))

    monkeypatch.setattr(Phi3Attention, "__init__", make)
    with_read(monkeypatch, biased)
    agrees("phi3", step)


def test_these_are_the_families_that_transformers_does_not_have() -> None:
    assert {name for name in FAMILIES if name not in CONFIG_MAPPING} == NOT_BUILT
    for name in NOT_BUILT:
        assert architecture({"model_type": name}).step_of in FAMILIES.keys() - NOT_BUILT
