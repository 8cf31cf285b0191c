"""The ledger of an evaluation against the real models' own under torch.no_grad, every peak equal to the byte."""

from typing import Any

import pytest

from calc import Scenario, estimate
from calc.scenario import Task
from tests.validation.random_steps import agree
from validation.trace import trace

GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 777}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 150,
    "num_hidden_layers": 3,
    "vocab_size": 777,
}
IA3_IN_FP32 = {"kind": "ia3", "target_modules": ["down_proj"], "feedforward_modules": ["down_proj"]}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "GPT-2, flash under autocast": (GPT2, {}),
    "GPT-2, eager, fp32": (GPT2, {"attention": "eager", "precision": "fp32"}),
    "GPT-2, efficient, which keeps no statistics": (GPT2, {"attention": "efficient", "precision": "fp32"}),
    "GPT-2, math, bf16": (GPT2, {"attention": "math", "precision": "bf16"}),
    "GPT-2, fp16 with a scaler": (GPT2, {"precision": "fp16-autocast", "optimizer": "sgd-momentum"}),
    "Llama, checkpointed in training": (LLAMA, {"recompute": "full", "attention": "eager"}),
    "Llama, core checkpointed in training": (LLAMA, {"recompute": "selective", "precision": "bf16"}),
    "Llama, gradients kept": (LLAMA, {"zero_grad_set_to_none": False, "gradient_accumulation_steps": 2}),
    "Llama, averaged weights": (LLAMA, {"weight_ema": True}),
    "Llama, LoRA with dropout": (LLAMA, {"adapter": {"rank": 4, "dropout": 0.1}}),
    "Llama, DoRA with dropout": (LLAMA, {"adapter": {"use_dora": True, "dropout": 0.1}}),
    "Llama, IA³ on a narrower input": (LLAMA, {"adapter": IA3_IN_FP32, "attention": "eager"}),
    "Llama, QLoRA": (LLAMA, {"adapter": {"kind": "qlora"}}),
    "Llama, P-tuning": (LLAMA, {"adapter": {"kind": "p-tuning"}}),
    "Llama, Liger's kernels": (LLAMA, {"use_liger_kernel": True}),
    **{f"GPT-2, logits of {kept} kept": (GPT2, {"eval_accumulation_steps": kept}) for kept in (1, 2, 3, 5)},
}


@pytest.mark.parametrize("case", CASES)
def test_evaluations_agree(case: str) -> None:
    config, fields = CASES[case]
    scenario = Scenario(model=config, task=Task.EVALUATION, micro_batch_size=2, sequence_length=70, **fields)
    traced = trace(scenario, config)
    agree(scenario, traced)
    memory = estimate(scenario).memory
    assert memory.peak_allocated_bytes == traced.memory["peak_allocated_bytes"]
    assert memory.autograd_saved_bytes == traced.memory["autograd_saved_bytes"] == 0
