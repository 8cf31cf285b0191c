"""The founding formulas equal the ledger, minus extras that are named, for all values.

Both sides are SymPy expressions of the same symbols; a proof is that their difference expands to zero.
"""

from typing import Any

import pytest
import sympy

from calc import closed_forms
from calc.assembly import step_memory
from calc.gradients import gradient_of
from calc.hf_config import architecture
from calc.ledger import Component, Kind, Tensor
from calc.memory import StepMemory
from calc.optimizers import kept_between_steps, persistent_gradient
from calc.parts import Part
from calc.plan import Plan, Workload
from calc.recomputation import CORE_MODULE
from calc.scenario import Adapter, Attention, Implementation, Precision, Recompute

B, S, L, V, P, N, D, R = sympy.symbols("B S L V P N D R", positive=True, integer=True)
H = N * D
GPT = {"B": B, "S": S, "L": L, "V": V, "P": P, "N": N, "K": N, "D": D, "H": H, "F": 4 * H, "R": R}
"""The closed forms' block: as many key and value heads as heads, an MLP of width 4H."""

ARCHITECTURE = architecture({"model_type": "gpt2"})
WORKLOAD = Workload(micro_batch_size=2, sequence_length=8)
"""Only their facts are used, such as that there is more than one sequence; sizes are the symbols."""


LATER_LAYERS = 2
"""The runs of a step: embedding, first layer, later layers, head."""


def gpt2(**choices: Any) -> StepMemory:
    """A training step of GPT-2 with eager attention."""
    return step_memory(ARCHITECTURE, WORKLOAD, Plan(attention=Attention.EAGER, **choices))


def layer_of(step: StepMemory) -> Part:
    """A layer that is not the first, whose input needs a gradient in every scenario."""
    return step.runs[LATER_LAYERS].part


def assert_equal(left: Any, right: Any) -> None:
    assert sympy.expand(left - right) == 0


def test_parameters() -> None:
    embedding, first, later, head = (sum(tensor.numel(GPT) for tensor, _ in run.part.parameters) for run in gpt2().runs)
    assert_equal(first, later)
    learned_positions = P * H
    final_norm = 2 * H
    closed_form = closed_forms.transformer_parameters(num_layers=L, vocab_size=V, hidden_size=H)
    assert_equal(embedding + L * later + head, closed_form + learned_positions + final_norm)


@pytest.mark.parametrize(
    ("precision", "recipe"),
    [
        (Precision.TEXTBOOK_20, "textbook-20"),
        (Precision.MEGATRON_18, "megatron-18"),
        (Precision.ZERO_16, "zero-16"),
        (Precision.BF16_AUTOCAST, "autocast-16"),
        (Precision.BF16, "half-8"),
        (Precision.FP16, "half-8"),
    ],
)
def test_bytes_of_weights_gradients_and_adam_states(precision: Precision, recipe: str) -> None:
    plan = Plan(precision=precision)
    weight, gradient = weight_and_gradient(plan)
    held = sum(tensor.nbytes(PHI) for tensor in {weight, gradient, *kept_between_steps(weight, plan, in_layer=True)})
    assert_equal(held, closed_forms.adam_mixed_precision_bytes(num_parameters=PHI["Φ"], recipe=recipe))


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16, Precision.ZERO_16, Precision.TEXTBOOK_20])
def test_half_precision_weights_and_gradients(precision: Precision) -> None:
    closed_form = closed_forms.half_precision_bytes(num_parameters=PHI["Φ"])
    for tensor in weight_and_gradient(Plan(precision=precision)):
        assert_equal(tensor.nbytes(PHI), closed_form)


PHI = {"Φ": sympy.Symbol("Φ", positive=True, integer=True)}


def weight_and_gradient(plan: Plan) -> tuple[Tensor, Tensor]:
    """All Φ parameters as one trained weight, and its gradient, as `plan` holds them."""
    weight = Tensor("weights", ("Φ",), plan.numerics.weights, Kind.PARAMETERS, trainable=True)
    (gradient,) = persistent_gradient(weight, plan) or (gradient_of(weight),)
    return weight, gradient


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16, Precision.ZERO_16, Precision.TEXTBOOK_20])
@pytest.mark.parametrize(
    ("recompute", "layer_norms"),
    [(Recompute.NONE, 2), (Recompute.SELECTIVE, 2), (Recompute.FULL, 0)],
    ids=str,
)
def test_activation_bytes_per_layer(precision: Precision, recompute: Recompute, layer_norms: int) -> None:
    step = gpt2(implementation=Implementation.MEGATRON, precision=precision, recompute=recompute)
    kept = layer_of(step).pieces[0][0].life.saved
    layer_norm_statistics = layer_norms * 2 * 4 * B * S  # mean and reciprocal deviation, fp32
    closed_form = closed_forms.activation_bytes_per_layer(
        batch_size=B, sequence_length=S, hidden_size=H, num_heads=N, recompute=recompute
    )
    assert_equal(sum(tensor.nbytes(GPT) for tensor in kept), closed_form + layer_norm_statistics)


ATTENTION_ROWS = {
    "qkv_projection": ("linear", "attn.c_attn"),
    "scores": ("scores", CORE_MODULE),
    "scaling": ("mul", CORE_MODULE),
    "softmax": ("softmax", CORE_MODULE),
    "values": ("values", CORE_MODULE),
    "output_projection": ("linear", "attn.c_proj"),
}


@pytest.mark.parametrize(("part", "name", "module"), [(part, *row) for part, row in ATTENTION_ROWS.items()])
def test_attention_flops(part: str, name: str, module: str) -> None:
    (row,) = (row for row in layer_of(gpt2()).section.rows if (row.name, row.module) == (name, module))
    elementwise = row.elementwise_flops * row.writes[0].numel(GPT)
    counted = sum(product.flops(GPT) for product in row.products) + elementwise
    closed_form = closed_forms.attention_flops(batch_size=B, sequence_length=S, hidden_size=H, num_heads=N)
    assert_equal(counted, getattr(closed_form, part))


def test_attention_flops_leave_out_the_mask_and_dropout_alone() -> None:
    attention = [row for row in layer_of(gpt2()).section.rows if row.component is Component.ATTENTION]
    counted = {(row.name, row.module) for row in attention if row.products or row.elementwise_flops}
    assert counted - set(ATTENTION_ROWS.values()) == {
        ("mask", CORE_MODULE),
        ("dropout", CORE_MODULE),
        ("dropout", "attn"),
    }


@pytest.mark.parametrize(
    ("target", "in_features", "out_features"),
    [("c_attn", H, 3 * H), ("attn.c_proj", H, H), ("c_fc", H, 4 * H), ("mlp.c_proj", 4 * H, H)],
)
def test_lora_parameters(target: str, in_features: Any, out_features: Any) -> None:
    adapted = layer_of(gpt2(adapter=Adapter(target_modules=(target,)))).section
    added = sum(tensor.numel(GPT) for tensor, _ in adapted.parameters() if tensor.trainable)
    assert_equal(added, closed_forms.lora_parameters(in_features=in_features, out_features=out_features, rank=R))
