"""The quick fake tensors are torch's own."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from calc import Adapter, Scenario
from validation import trace as tracer
from validation.trace import trace

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "vocab_size": 99,
}
SCENARIOS = (
    {"attention": "eager", "precision": "fp16-autocast", "adapter": Adapter(rank=2, dropout=0.1)},
    {"attention": "math", "precision": "fp32", "optimizer": "adafactor", "recompute": "selective", "dropout": 0.1},
)


@pytest.mark.parametrize("choices", SCENARIOS, ids=("autocast", "fp32"))
def test_traces_are_the_same(choices: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = Scenario(model=CONFIG, micro_batch_size=2, sequence_length=9, **choices)
    quick = trace(scenario, CONFIG)
    monkeypatch.setattr(tracer, "QuickFakeTensorMode", FakeTensorMode)
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        assert trace(scenario, CONFIG).to_dict() == quick.to_dict()
