"""LoRA on an int8 base: a byte a weight with a scale a row, inputs that nodes hold until the graph goes."""

from math import ceil
from typing import Any

import pytest

from calc import Adapter, ConfigError, Estimate, Scenario, estimate
from calc.ledger import Kind
from calc.timeline import Phase

H, F, S, L = 64, 100, 33, 3
LLAMA = {
    "model_type": "llama",
    "hidden_size": H,
    "num_attention_heads": 4,
    "num_hidden_layers": L,
    "intermediate_size": F,
    "vocab_size": 333,
}
LINEARS = [(H, H)] * 4 + [(F, H)] * 2 + [(H, F)]
"""Outputs and inputs of a layer's linears."""


def answered(kind: str = "lora-int8", **choices: Any) -> Estimate:
    fields = {name: choices.pop(name) for name in Adapter.model_fields if name in choices}
    step: dict[str, Any] = {"sequence_length": S, "precision": "bf16", "attention": "eager"} | choices
    return estimate(Scenario(model=LLAMA, adapter=Adapter(**{"kind": kind, **fields}), **step))


def allocated(num_bytes: int) -> int:
    return ceil(num_bytes / 512) * 512


def test_it_counts_the_parameters_and_products_lora_counts() -> None:
    assert answered().parameters == answered("lora").parameters
    assert answered().flops.total == answered("lora").flops.total


def test_weights_are_bytes_with_a_scale_for_each_output() -> None:
    plain, quantised = answered("lora").memory.persistent_bytes, answered().memory.persistent_bytes
    saved = L * sum(allocated(2 * out * inside) - allocated(out * inside) for out, inside in LINEARS)
    assert plain["parameters"] - quantised["parameters"] == saved
    scales = L * sum(allocated(4 * out) for out, _ in LINEARS)
    assert quantised["buffers"] - plain["buffers"] == scales


def held_bytes(answer: Estimate) -> int:
    """What goes with the graph: the last spans of backward."""
    spans = [span for span in answer.step.timeline.spans if span.stretch.phase is Phase.BACKWARD]
    last = max(index for index, span in enumerate(spans) if span.stretch.label == "end")
    return spans[last].end_bytes - spans[-1].end_bytes


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_inputs_are_held_until_the_graph_goes_checkpointed_or_not(recompute: str) -> None:
    """Of each layer the two norms' outputs, the attention's and the MLP's product; in the first layer of a model that
    is not checkpointed nothing before the first adapted projection needs a gradient."""
    held = held_bytes(answered(recompute=recompute))
    normed, product = allocated(2 * S * H), allocated(2 * S * F)
    first_normed = 0 if recompute == "none" else normed
    assert held == L * (3 * normed + product) - normed + first_normed
    assert held_bytes(answered("qlora", recompute=recompute)) == 0


def test_saved_tensor_hooks_do_not_see_them() -> None:
    full, qlora = answered(recompute="full").memory, answered("qlora", recompute="full").memory
    assert full.autograd_saved_bytes == qlora.autograd_saved_bytes
    assert full.saved_activation_bytes > qlora.saved_activation_bytes


def test_what_a_product_makes_for_a_moment() -> None:
    rows = answered().step.step.parts[1].section.rows
    [quantising] = [row for row in rows if row.name == "int8_vectorwise_quant" and row.module == "mlp.down_proj"]
    [product] = [row for row in rows if row.name == "linear" and row.module == "mlp.down_proj"]
    made = [(each.dtype.label, each.shape[-1]) for each in (*quantising.writes, *quantising.temporaries)]
    assert made == [("int8", "F"), ("fp32", "S"), ("fp16", "F"), ("fp16", "F"), ("bool", "F")]
    assert [(each.dtype.label, each.shape[-1]) for each in product.temporaries] == [("int32", "H"), ("fp16", "H")]
    assert [(each.dtype.label, each.shape) for each in product.backward_temporaries] == [("bf16", ("H", "F"))]
    in_fp16 = answered(precision="fp16").step.step.parts[1].section.rows
    sizes = [len(row.temporaries) for row in in_fp16 if row.module == "mlp.down_proj" and row.temporaries]
    assert sizes == [2, 1]


def test_under_autocast_all_but_the_weights_is_fp32() -> None:
    tensors = {entry.name: entry for entry in answered(precision="bf16-autocast").tensors}
    assert tensors["embed_tokens.weight"].dtype == "fp32"
    assert tensors["self_attn.k_proj.weight"].dtype == "int8"
    assert tensors["gate_proj output"].dtype == "fp32"
    assert tensors["self_attn.k_proj.weight scales"].kind is Kind.BUFFERS


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"dtype": "base"}, r"adapter\.dtype = 'base': is not read with adapter\.kind = lora-int8"),
        ({"bnb_4bit_use_double_quant": False}, r"is not read with adapter\.kind = lora-int8"),
        ({"weight_ema": True}, "should be false with a quantised base"),
        ({"modules_to_save": ("o_proj",)}, "names a quantised linear"),
    ],
)
def test_what_it_does_not_go_with(choices: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        answered(**choices)


def test_it_says_that_it_is_derived() -> None:
    assert any("MatMul8bitLt" in note and "assumed" in note for note in answered().notes)
