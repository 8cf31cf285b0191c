"""Each optimizer's step against the real one: states, the optimizer phase and the first step, to the byte."""

from typing import Any

import pytest

from calc import Adapter, Scenario, estimate
from calc.optimizer_loops import LOOPS as LOOPING
from calc.plan import BITSANDBYTES
from calc.scenario import AdapterDType, Attention, Optimizer
from tests.validation.families import config_of
from validation.trace import trace

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 1500, "n_positions": 128, **TOKENS}
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 72,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 300,
    "num_hidden_layers": 3,
    "vocab_size": 900,
    "tie_word_embeddings": False,
    **TOKENS,
}
ALLOCATION_BYTES = 512
"""The average's counter on its way to the device, which a trace on one device does not see."""
TRACED = [optimizer for optimizer in Optimizer if optimizer not in BITSANDBYTES]
PRECISIONS = ("bf16-autocast", "fp16-autocast", "bf16")
LOOPS: list[dict[str, Any]] = [
    {},
    {"max_grad_norm": 1.0},
    {"zero_grad_set_to_none": False, "gradient_accumulation_steps": 2},
    {"max_grad_norm": 1.0, "weight_ema": True, "adapter": Adapter(rank=3, dtype=AdapterDType.BASE)},
]


@pytest.mark.parametrize("index", range(len(LOOPS)), ids=lambda index: ", ".join(LOOPS[index]))
@pytest.mark.parametrize("optimizer", TRACED)
def test_the_optimizer_phase(optimizer: Optimizer, index: int) -> None:
    precision = PRECISIONS[(index + TRACED.index(optimizer)) % len(PRECISIONS)]
    config = GPT2 if precision == "fp16-autocast" else QWEN3
    agree(config, optimizer=optimizer, precision=precision, **LOOPS[index])


@pytest.mark.parametrize("optimizer", LOOPING)
def test_what_a_layer_leaves_is_freed_with_its_own_sizes(optimizer: Optimizer) -> None:
    widths = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 800}
    agree(config_of("bart") | widths, optimizer=optimizer, precision="fp32")


def agree(config: dict[str, Any], **fields: Any) -> None:
    scenario = Scenario(model=config, micro_batch_size=1, sequence_length=8, attention=Attention.EAGER, **fields)
    memory, seen = estimate(scenario).memory, trace(scenario, config).memory
    assert {name: size for name, size in memory.persistent_bytes.items() if name in seen["persistent_bytes"]} == seen[
        "persistent_bytes"
    ]
    updating, updated = memory.phases[-1], seen["phases"][-1]
    unseen = {0, ALLOCATION_BYTES} if scenario.weight_ema else {0}
    assert updating.end_allocated_bytes == updated["end_allocated_bytes"]
    assert updating.peak_allocated_bytes - updated["peak_allocated_bytes"] in unseen
    assert memory.first_step_peak_allocated_bytes == seen["first_step_peak_allocated_bytes"]
    assert sum(memory.at_peak.values()) == memory.peak_allocated_bytes
