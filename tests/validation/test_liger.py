"""Liger's kernels: the ledger against steps with the emulation of what they allocate and keep."""

from typing import Any

import pytest

from calc import Adapter, ConfigError, Scenario, estimate
from calc.scenario import AdapterDType
from validation.trace import trace

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 100,
    "vocab_size": 97,
    **TOKENS,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "equal heads": LLAMA | {"num_key_value_heads": 4, "mlp_bias": True},
    "one head": LLAMA | {"num_attention_heads": 1, "num_key_value_heads": 1},
    "padded heads": LLAMA | {"hidden_size": 40},
    "mistral with a window": LLAMA | {"model_type": "mistral", "sliding_window": 8},
    "qwen2": LLAMA | {"model_type": "qwen2"},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 24},
}
PRECISIONS = ("bf16-autocast", "fp16-autocast", "bf16", "fp32")
KERNELS = ("eager", "auto", "math")
CHOICES: dict[str, dict[str, Any]] = {
    "every layer again": {"recompute": "full"},
    "attention again": {"recompute": "selective"},
    "accumulated": {"gradient_accumulation_steps": 2, "precision": "bf16"},
    "one token": {"sequence_length": 1},
    "one sequence": {"micro_batch_size": 1},
    "LoRA": {"adapter": Adapter(rank=3)},
    "LoRA in the MLP": {"adapter": Adapter(rank=3, target_modules=("gate_proj",), dtype=AdapterDType.BASE)},
    "trained norm": {"adapter": Adapter(rank=3, modules_to_save=("norm",)), "precision": "bf16"},
    "frozen layers": {"frozen_layers": 2},
    "chunked loss": {"loss": "chunked-cross-entropy"},
    "Liger's loss": {"loss": "fused-linear-cross-entropy"},
}


def asked(config: dict[str, Any], **fields: Any) -> Scenario:
    sizes: dict[str, Any] = {"micro_batch_size": 2, "sequence_length": 16}
    return Scenario(model=config, use_liger_kernel=True, **sizes | fields)


def agree(scenario: Scenario) -> None:
    assert isinstance(scenario.model, dict)
    answer, seen = estimate(scenario), trace(scenario, scenario.model)
    for name in ("saved_activation_bytes", "autograd_saved_bytes", "first_step_peak_allocated_bytes"):
        assert getattr(answer.memory, name) == seen.memory[name], name
    for phase, traced in zip(answer.memory.phases, seen.memory["phases"], strict=True):
        assert phase.peak_allocated_bytes == traced["peak_allocated_bytes"], phase.name
        assert phase.end_allocated_bytes == traced["end_allocated_bytes"], phase.name
    assert {name: getattr(answer.flops, name) for name in seen.flops} == seen.flops
    assert sum(answer.memory.at_peak.values()) == answer.memory.peak_allocated_bytes


@pytest.mark.parametrize("index", range(len(CONFIGS) * len(KERNELS)))
def test_models_and_kernels(index: int) -> None:
    config = list(CONFIGS.values())[index % len(CONFIGS)]
    precision = PRECISIONS[index % len(PRECISIONS)]
    agree(asked(config, precision=precision, attention=KERNELS[index % len(KERNELS)]))


@pytest.mark.parametrize("choice", CHOICES)
def test_choices(choice: str) -> None:
    agree(asked(LLAMA, **CHOICES[choice]))


def test_bytes_of_a_layer_by_hand() -> None:
    # Per token in bf16: two norms keep x and rstd, their outputs the linears; q, k, v, attention's output and
    # statistics; gate, up and their product. x of a layer is the residual stream, which nothing else keeps.
    h, f, kv, heads = 64, 100, 32, 4
    scenario = asked(LLAMA, precision="bf16", attention="flash", sequence_length=128, micro_batch_size=4)
    by_token = 2 * (2 * h + 4) + 2 * 2 * h + 2 * (2 * h + 2 * kv) + 4 * heads + 3 * 2 * f
    random_state = 2 * 512
    assert estimate(scenario).memory.saved_activation_bytes_per_layer == 512 * by_token + random_state


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "gpt2"}, "not for gpt2"),
        ({"model": "gpt2", "implementation": "megatron", "precision": "bf16"}, "patches models of transformers"),
        ({"model": LLAMA | {"hidden_act": "gelu"}}, "SiLU"),
        ({"model": LLAMA | {"intermediate_size": 65537}}, "65,536"),
    ],
)
def test_where_liger_has_no_kernels(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        estimate(Scenario(use_liger_kernel=True, **fields))
    assert refusal.value.field == "use_liger_kernel"
