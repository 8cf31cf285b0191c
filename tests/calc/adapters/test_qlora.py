"""QLoRA: 4-bit weights with their scales, written out for a moment in every product."""

from math import ceil
from typing import Any

import pytest

from calc import Adapter, ConfigError, Estimate, Scenario, estimate
from calc.ledger import Kind

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 100,
    "vocab_size": 333,
}
LINEARS = [64 * 64] * 4 + [64 * 100] * 3
OTHERS = 2 * 333 * 64 + 64 + 3 * 2 * 64
"""Weights that stay in bf16: embedding, head, norms."""


def answered(model: dict[str, Any] | str = LLAMA, kind: str = "qlora", **choices: Any) -> Estimate:
    fields = {name: choices.pop(name) for name in Adapter.model_fields if name in choices}
    step: dict[str, Any] = {"sequence_length": 33, "precision": "bf16"} | choices
    return estimate(Scenario(model=model, adapter=Adapter(**{"kind": kind, **fields}), **step))


def allocated(num_bytes: float) -> int:
    return ceil(num_bytes / 512) * 512


def test_it_counts_the_parameters_lora_counts() -> None:
    assert answered().parameters == answered(kind="lora").parameters


@pytest.mark.parametrize("double", [True, False])
def test_weights_are_half_a_byte_and_scales_lie_beside_them(double: bool) -> None:
    plain, packed = answered(kind="lora"), answered(bnb_4bit_use_double_quant=double)
    held, before = packed.memory.persistent_bytes, plain.memory.persistent_bytes
    saved = 3 * sum(allocated(2 * numel) - allocated(numel / 2) for numel in LINEARS)
    assert before["parameters"] - held["parameters"] == saved
    state = sum(map(_double_state if double else _state, LINEARS))
    assert held["buffers"] - before["buffers"] == 3 * state


def _state(numel: int) -> int:
    return allocated(4 * 16) + allocated(4 * ceil(numel / 64))


def _double_state(numel: int) -> int:
    """4-bit code, one byte for 64 weights, fp32 for 256 of those, the bytes' code, their mean."""
    scales = ceil(numel / 64)
    return allocated(4 * 16) + allocated(scales) + allocated(4 * ceil(scales / 256)) + allocated(4 * 256) + allocated(4)


def test_bits_per_weight_of_a_real_model() -> None:
    """4 + 8/64 + 32/(64·256) = 4.127 bits (QLoRA, section 3), here 0.02 % more for tables and rounding."""
    model = "llama-2-7b"
    packed, plain = (answered(model, kind=kind).memory.persistent_bytes for kind in ("qlora", "lora"))
    numel = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    freed = plain["parameters"] - packed["parameters"]
    bits = 16 - 8 * (freed - (packed["buffers"] - plain["buffers"])) / numel
    assert bits == pytest.approx(4.127, rel=0.0005)


def test_a_weight_is_written_out_in_forward_and_in_backward() -> None:
    linears = [row for part in answered().step.step.parts for row in part.section.rows if row.name == "linear"]
    base = [row for row in linears if any(tensor.dtype.label == "4-bit" for tensor in row.reads)]
    assert base
    assert len(base) % len(LINEARS) == 0
    for row in base:
        [out] = row.backward_temporaries
        *_, in_forward = row.temporaries
        assert (in_forward.name, in_forward.dtype) == (out.name, out.dtype)
        [elements] = in_forward.shape
        assert elements.of == out.shape
        assert out.kind is Kind.TEMPORARIES
        assert not row.saves


def test_under_autocast_all_but_the_packed_weights_is_fp32_and_so_are_linears_outputs() -> None:
    tensors = {entry.name: entry for entry in answered(precision="bf16-autocast").tensors}
    assert tensors["embed_tokens.weight"].dtype == "fp32"
    assert tensors["self_attn.k_proj.weight"].dtype == "4-bit"
    assert tensors["gate_proj output"].dtype == "fp32"  # its input, the norm's output, is fp32
    plain = {entry.name: entry for entry in answered(kind="lora", precision="bf16-autocast").tensors}
    assert plain["gate_proj output"].dtype == "bf16"


def test_products_are_those_of_lora() -> None:
    assert answered().flops.total == answered(kind="lora").flops.total


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"dtype": "base"}, r"adapter\.dtype = 'base': is not read with adapter\.kind = qlora"),
        ({"weight_ema": True}, "weight_ema = True: should be false with a quantised base"),
        ({"use_dora": True}, r"adapter\.use_dora = True: is not read with adapter\.kind = qlora"),
        ({"modules_to_save": ("o_proj",)}, r"adapter\.modules_to_save = 'o_proj': names a quantised linear"),
        (
            {"kind": "lora", "bnb_4bit_use_double_quant": False},
            r"adapter\.bnb_4bit_use_double_quant = False: is not read",
        ),
    ],
)
def test_what_it_does_not_go_with(choices: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        answered(**choices)


def test_it_says_that_it_is_derived() -> None:
    assert any("bitsandbytes 0.50.2" in note and "assumed" in note for note in answered().notes)


def test_layers_that_are_one_region_have_scales_each() -> None:
    apart, grouped = answered(recompute="full"), answered(recompute="full", recompute_group_size=2)
    assert grouped.memory.persistent_bytes == apart.memory.persistent_bytes
