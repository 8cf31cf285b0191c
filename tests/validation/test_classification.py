"""The ledger of a classification head against the real ...ForSequenceClassification, every peak equal to the byte."""

from typing import Any

import pytest

from calc import Scenario, estimate
from tests.validation.families import DISENTANGLED
from tests.validation.random_steps import agree
from validation.trace import trace

GPT2 = {"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 777}
LLAMA = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 150,
    "num_hidden_layers": 2,
    "vocab_size": 777,
}
BERT = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 150,
    "max_position_embeddings": 160,
    "vocab_size": 777,
}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "bert": BERT,
    "roberta": BERT,
    "deberta-v2": BERT | DISENTANGLED | {"position_buckets": 16, "share_att_key": True, "position_biased_input": False},
}
MANY_LABELS = 300
"""So many that the scores of all tokens are the peak."""
PRECISIONS = ("fp32", "bf16", "fp16", "bf16-autocast")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{model_type: (model_type, {}) for model_type in SIZES},
    **{f"many labels, {name}": ("llama", {"num_labels": MANY_LABELS, "precision": name}) for name in PRECISIONS},
    "many labels, GPT-2": ("gpt2", {"num_labels": MANY_LABELS, "precision": "fp16-autocast"}),
    "one sequence": ("qwen3", {"micro_batch_size": 1}),
    "outputs held": ("gpt2", {"hold_outputs": True}),
    "recomputed, accumulated": ("llama", {"recompute": "full", "gradient_accumulation_steps": 2}),
    "all layers frozen": ("llama", {"frozen_layers": 2}),
    "evaluated": ("llama", {"task": "evaluation", "eval_accumulation_steps": 3}),
    "LoRA": ("llama", {"adapter": {"target_modules": ["all-linear"], "dropout": 0.1}}),
    "DoRA": ("qwen2", {"adapter": {"use_dora": True}}),
    **{f"BERT, {name}": ("bert", {"precision": name}) for name in PRECISIONS},
    "BERT, no dropout, recomputed": ("bert", {"dropout": 0.0, "recompute": "full", "attention": "eager"}),
    "BERT, LoRA": ("bert", {"adapter": {"target_modules": ["all-linear"], "dropout": 0.1}}),
    "BERT, frozen": ("bert", {"frozen_layers": 1}),
    "BERT, evaluated": ("bert", {"task": "evaluation", "eval_accumulation_steps": 3}),
    "RoBERTa": ("roberta", {}),
    "RoBERTa, LoRA": ("roberta", {"adapter": {}}),
    "RoBERTa, no dropout": ("roberta", {"dropout": 0.0, "precision": "bf16"}),
    **{f"regression, {name}": ("llama", {"num_labels": 1, "precision": name}) for name in PRECISIONS},
    **{
        f"{problem} of many labels, {model_type}, {name}": (
            model_type,
            {"num_labels": MANY_LABELS, "problem_type": problem, "precision": name},
        )
        for problem in ("regression", "multi_label_classification")
        for model_type, names in (("llama", PRECISIONS), ("bert", PRECISIONS[:1]), ("gpt2", PRECISIONS[3:]))
        for name in names
    },
    "regression, evaluated": ("llama", {"num_labels": 1, "task": "evaluation", "eval_accumulation_steps": 3}),
    "regression, held": ("llama", {"num_labels": 1, "hold_outputs": True, "precision": "fp16-autocast"}),
    "DeBERTa, its problem named": ("deberta-v2", {"problem_type": "single_label_classification"}),
    "DeBERTa, one label, picked": ("deberta-v2", {"num_labels": 1, "precision": "bf16", "adapter": {}}),
    "IA³": ("gpt2", {"adapter": {"kind": "ia3"}}),
    "Liger's kernels": ("mistral", {"use_liger_kernel": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_classifiers_agree(case: str) -> None:
    model_type, fields = CASES[case]
    config = {"model_type": model_type, **SIZES[model_type]}
    asked: dict[str, Any] = {"num_labels": 3, "micro_batch_size": 3, "sequence_length": 70} | fields
    agree_exactly(Scenario(model=config, **asked), config)


def test_a_config_that_names_the_head_is_that_model() -> None:
    config: dict[str, Any] = {
        "model_type": "gpt2",
        **SIZES["gpt2"],
        "architectures": ["GPT2ForSequenceClassification"],
        "id2label": {"0": "a", "1": "b", "2": "c", "3": "d"},
    }
    agree_exactly(Scenario(model=config, sequence_length=40), config)


def agree_exactly(scenario: Scenario, config: dict[str, Any]) -> None:
    traced = trace(scenario, config)
    agree(scenario, traced)
    assert estimate(scenario).memory.peak_allocated_bytes == traced.memory["peak_allocated_bytes"]
