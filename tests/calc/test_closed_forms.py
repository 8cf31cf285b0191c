"""The founding formulas against published numbers and tiny sums done by hand."""

import math
from typing import Any

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from calc import closed_forms
from calc.errors import ConfigError
from calc.recipes import RECIPES, State

GPT2 = {"num_layers": 12, "vocab_size": 50257, "hidden_size": 768}
GPT3 = {"num_layers": 96, "vocab_size": 50257, "hidden_size": 12288}
GPT3_LAYER: dict[str, Any] = {"batch_size": 1, "hidden_size": 12288, "num_heads": 96}


def test_gpt2_parameters_are_the_closed_form_plus_positions_and_final_norm():
    assert closed_forms.transformer_parameters(**GPT2) + 1024 * 768 + 2 * 768 == 124_439_808


def test_gpt3_weights_are_350_gb():
    num_parameters = closed_forms.transformer_parameters(**GPT3)
    assert round(num_parameters / 1e9, 1) == 174.6
    # Known as "175B", "350 GB": 2 bytes for each of 174.6 billion.
    assert round(closed_forms.half_precision_bytes(num_parameters=num_parameters) / 1e9) == 349


@pytest.mark.parametrize(("sequence_length", "gigabytes"), [(1024, 89.4), (8192, 3420.9)])
def test_gpt3_activations_are_the_formula_as_it_stands(sequence_length: int, gigabytes: float):
    per_layer = closed_forms.activation_bytes_per_layer(sequence_length=sequence_length, **GPT3_LAYER)
    assert round(96 * per_layer / 1e9, 1) == gigabytes


@pytest.mark.parametrize(
    ("recompute", "expected"),
    [
        ("none", 34 * 2 * 8 * 6 + 5 * 2 * 3 * 8 * 8),  # 3264 + 1920
        ("selective", 3264),
        ("full", 192),
    ],
)
def test_activation_bytes_of_a_tiny_layer(recompute: str, expected: int):
    assert (
        closed_forms.activation_bytes_per_layer(
            batch_size=2, sequence_length=8, hidden_size=6, num_heads=3, recompute=recompute
        )
        == expected
    )


def test_attention_flops_of_a_tiny_layer():
    flops = closed_forms.attention_flops(batch_size=2, sequence_length=8, hidden_size=6, num_heads=3)
    assert flops.qkv_projection == 3456  # 2 · [16, 6] · [6, 18]
    assert flops.scores == 1536  # 2 · 6 matrices · [8, 2] · [2, 8]
    assert flops.scaling == 384  # 6 matrices of 8 · 8
    assert flops.softmax == 1152
    assert flops.values == 1536
    assert flops.output_projection == 1152  # 2 · [16, 6] · [6, 6]
    assert flops.matmul == 3456 + 1536 + 1536 + 1152
    assert flops.elementwise == 384 + 1152


def test_lora_parameters():
    assert closed_forms.lora_parameters(in_features=4096, out_features=1024, rank=16) == 81_920


@pytest.mark.parametrize(
    ("recipe", "bytes_per_parameter"),
    [("textbook-20", 20), ("megatron-18", 18), ("zero-16", 16), ("autocast-16", 16), ("half-8", 8)],
)
def test_recipe_bytes(recipe: str, bytes_per_parameter: int):
    assert closed_forms.adam_mixed_precision_bytes(num_parameters=10**12 + 1, recipe=recipe) == (
        bytes_per_parameter * (10**12 + 1)
    )


def test_textbook_optimizer_holds_16_of_the_20_bytes():
    states = RECIPES["textbook-20"].states
    assert sum(dtype.itemsize for state, dtype in states.items() if state not in (State.WEIGHTS, State.GRADIENTS)) == 16


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"recipe = 'adam-12'.*textbook-20"):
        closed_forms.adam_mixed_precision_bytes(num_parameters=1, recipe="adam-12")
    with pytest.raises(ConfigError, match=r"recompute = 'some'.*selective"):
        closed_forms.activation_bytes_per_layer(sequence_length=1, recompute="some", **GPT3_LAYER)


def test_symbols_and_arrays_give_what_integers_give():
    sizes: dict[str, Any] = {"batch_size": 3, "sequence_length": 160, "hidden_size": 96, "num_heads": 6}
    symbols: dict[str, Any] = {name: sympy.Symbol(name, positive=True, integer=True) for name in sizes}
    arrays: dict[str, Any] = {name: np.array([float(size)]) for name, size in sizes.items()}
    exact = closed_forms.activation_bytes_per_layer(**sizes)
    symbolic = closed_forms.activation_bytes_per_layer(**symbols)
    assert symbolic.subs({symbols[name]: size for name, size in sizes.items()}) == exact
    assert closed_forms.activation_bytes_per_layer(**arrays)[0] == exact


def accesses_of_flash_attention(num_rows: int, width: int, sram: int) -> int:
    """Elements that algorithm 1 of the FlashAttention paper moves, loop by loop (N, d and M there)."""
    block_columns = math.ceil(sram / (4 * width))
    block_rows = min(block_columns, width)
    moved = num_rows * width + 2 * num_rows  # line 2: O, l and m begin in HBM
    for column in range(0, num_rows, block_columns):
        keys = min(block_columns, num_rows - column)
        moved += 2 * keys * width  # line 6: K_j and V_j
        for row in range(0, num_rows, block_rows):
            queries = min(block_rows, num_rows - row)
            moved += 2 * queries * width + 2 * queries  # line 8: Q_i, O_i, l_i and m_i
            moved += queries * width + 2 * queries  # lines 12 and 13: O_i, l_i and m_i
    return moved


@given(num_rows=st.integers(1, 80), width=st.integers(1, 24), sram=st.integers(1, 2000))
def test_flash_attention_moves_what_its_loops_move(num_rows: int, width: int, sram: int):
    traffic = closed_forms.flash_attention_traffic_bytes(
        batch_size=3, sequence_length=num_rows, head_dim=width, num_heads=5, sram_bytes=2 * sram
    )
    assert traffic == 2 * 3 * 5 * accesses_of_flash_attention(num_rows, width, sram)


def test_standard_attention_moves_its_matrices():
    num_rows, width = 10, 4
    scores = [num_rows * width, num_rows * width, num_rows**2]  # Q and K read, S written
    softmax = [num_rows**2, num_rows**2]  # S read, P written
    values = [num_rows**2, num_rows * width, num_rows * width]  # P and V read, O written
    traffic = closed_forms.standard_attention_traffic_bytes(
        batch_size=1, sequence_length=num_rows, head_dim=width, num_heads=1
    )
    assert traffic == 2 * sum(scores + softmax + values)


def test_the_orders_of_theorem_2():
    """For long sequences: 4 accesses a pair with scores, 12 + 16/d for each of S²·d²/M with FlashAttention."""
    width, blocks, keys = sympy.symbols("d n b", positive=True, integer=True)
    length, sram = blocks * keys, 4 * width * keys  # blocks of b keys fill M
    sizes: dict[str, Any] = {"batch_size": 1, "sequence_length": length, "head_dim": width, "num_heads": 1}
    flash = closed_forms.flash_attention_traffic_bytes(**sizes, sram_bytes=2 * sram) / 2
    standard = closed_forms.standard_attention_traffic_bytes(**sizes) / 2
    assert sympy.limit(flash / (length**2 * width**2 / sram), blocks, sympy.oo).equals(12 + 16 / width)
    assert sympy.limit(standard / (length * width + length**2), blocks, sympy.oo) == 4


def test_causal_pairs_are_the_triangle_with_its_diagonal():
    pairs = [(query, key) for query in range(7) for key in range(query + 1)]
    flops = closed_forms.causal_attention_flops(batch_size=2, sequence_length=7, hidden_size=6)
    assert flops == 2 * len(pairs) * 4 * 6
