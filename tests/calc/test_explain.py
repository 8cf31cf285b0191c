"""The formulas with numbers put in: they compute to their value, and differ from the ledger by what they say."""

import re
from inspect import getdoc
from typing import Any

import pytest

import calc
from calc import closed_forms
from calc.explain import Formula, formulas

SCENARIOS: dict[str, dict[str, Any]] = {
    "gpt2": {"model": "gpt2"},
    "gpt2 in half precision": {"model": "gpt2", "precision": "bf16", "micro_batch_size": 3, "recompute": "full"},
    "gpt3, the textbook's": {
        "model": "gpt3-175b",
        "implementation": "megatron",
        "precision": "textbook-20",
        "attention": "eager",
        "sequence_length": 1024,
    },
    "llama": {"model": "llama-3.1-8b", "recompute": "full", "gradient_accumulation_steps": 2},
    "llama with lora": {"model": "llama-3.1-8b", "precision": "bf16", "adapter": {"rank": 16}},
    "mixture": {"model": "mixtral-8x7b", "micro_batch_size": 3, "sequence_length": 1001},
    "untied and grouped": {"model": "qwen3-8b", "optimizer": "sgd"},
}


ARITHMETIC = {"·": "*", "²": "**2", "⌈": "-(-(", " / ": ") // (", "⌉": "))"}
"""How Python writes what a statement does; ⌈a / b⌉ is rounded up."""


def explained(name: str) -> dict[str, Formula]:
    return {formula.key: formula for formula in formulas(calc.estimate(calc.Scenario(**SCENARIOS[name])))}


@pytest.mark.parametrize("name", SCENARIOS)
def test_numbers_put_in_compute_to_the_value(name: str) -> None:
    for formula in explained(name).values():
        arithmetic = formula.substituted
        for sign, operators in ARITHMETIC.items():
            arithmetic = arithmetic.replace(sign, operators)
        assert re.fullmatch(r"[-\d+*/ ()]+", arithmetic)
        assert eval(arithmetic) == formula.value


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_formula_says_where_it_is_from_and_why_it_differs(name: str) -> None:
    for formula in explained(name).values():
        assert formula.title
        assert formula.source
        assert formula.leaves_out
        assert all(symbol_name and value > 0 for symbol_name, value in formula.symbols.values())
        differs = formula.ledger_value not in (None, formula.value)
        assert bool(formula.difference) == differs, formula.key


@pytest.mark.parametrize("name", SCENARIOS)
def test_parts_of_the_parameters_add_up_to_the_difference(name: str) -> None:
    parameters = explained(name)["parameters"]
    parts = [int(part.replace(",", "")) for part in re.findall(r"[+-][\d,]*\d", parameters.difference)]
    assert parameters.ledger_value == parameters.value + sum(parts)


def test_gpt2_is_the_closed_form_plus_positions_and_final_norm() -> None:
    assert explained("gpt2")["parameters"].difference == "other embeddings +786,432, norms +1,536"


def test_statements_are_those_of_the_docstrings() -> None:
    functions = {
        "parameters": closed_forms.transformer_parameters,
        "weights": closed_forms.half_precision_bytes,
        "activations": closed_forms.activation_bytes_per_layer,
        "attention": closed_forms.attention_flops,
        "causal": closed_forms.causal_attention_flops,
        "traffic-standard": closed_forms.standard_attention_traffic_bytes,
        "traffic-flash": closed_forms.flash_attention_traffic_bytes,
    }
    for key, formula in explained("gpt2").items():
        function = functions.get(key, functions.get(key.split("-")[0]))
        if function is not None:
            assert formula.statement in (getdoc(function) or "")


def test_attention_flops_of_multi_head_attention_are_the_ledgers() -> None:
    for name in ("gpt2", "gpt3, the textbook's"):
        parts = [formula for key, formula in explained(name).items() if key.startswith("attention-")]
        assert len(parts) == 6
        assert all(formula.ledger_value == formula.value for formula in parts)


@pytest.mark.parametrize(
    ("name", "recipe"), [("gpt2", "autocast-16"), ("gpt2 in half precision", "half-8"), ("llama", "autocast-16")]
)
def test_states_of_full_training_are_the_recipes(name: str, recipe: str) -> None:
    by_key = explained(name)
    compared = {key for key, formula in by_key.items() if key.startswith("adam-") and formula.ledger_value is not None}
    assert compared == {f"adam-{recipe}"}
    assert by_key[f"adam-{recipe}"].ledger_value == by_key[f"adam-{recipe}"].value


def test_lora_is_explained_on_the_first_adapted_matrix() -> None:
    lora = explained("llama with lora")["lora"]
    assert lora.title == "LoRA on one matrix, self_attn.q_proj"
    assert lora.ledger_value == lora.value == 16 * (4096 + 4096)


def test_gpt3_shows_the_textbook_figures() -> None:
    by_key = explained("gpt3, the textbook's")
    statistics = 16 * 1024
    assert by_key["activations-none"].ledger_value == by_key["activations-none"].value + statistics
    assert round(96 * by_key["activations-none"].value / 1e9, 1) == 89.4
    assert round(by_key["weights"].value / 1e9) == 349
    assert "counts twice" in by_key["activations-none"].note


def test_causal_flops_are_what_the_ledger_counts_without_the_mask() -> None:
    causal = explained("gpt2")["causal-attention"]
    assert causal.ledger_value == causal.value
    assert "model_flops_per_token_causal" in causal.note


@pytest.mark.parametrize(
    ("gpu", "kilobytes", "whose"), [("h100-sxm-80gb", 228, "h100-sxm-80gb"), (None, 192, "the FlashAttention paper")]
)
def test_traffic_is_for_the_shared_memory_of_the_gpu(gpu: str | None, kilobytes: int, whose: str) -> None:
    answer = calc.estimate(calc.Scenario(model="llama-3.1-8b", gpu=gpu, sequence_length=2048))
    traffic = {formula.key: formula for formula in formulas(answer) if formula.key.startswith("traffic")}
    flash = traffic["traffic-flash"]
    assert whose in flash.title
    assert flash.symbols["M"][1] == kilobytes * 1024 // 2
    assert flash.value < traffic["traffic-standard"].value


def test_capacity_is_explained_where_there_are_experts() -> None:
    assert explained("mixture")["expert-capacity"].value == 751  # 2 · 3 · 1001 / 8, rounded up
    assert explained("mixture")["expert-activations"].value == 2 * 8 * 751 * (2 * 4096 + 4 * 14336)
    assert "expert-capacity" not in explained("gpt2")
