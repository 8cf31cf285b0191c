"""The founding formulas equal the ledger, minus extras that are named, for all values.

Both sides are SymPy expressions of the same symbols; a proof is that their difference expands to zero.
"""

from typing import Any

import pytest
import sympy

from calc import closed_forms
from calc.adapters import AdapterFacts, adapt
from calc.architecture import Activation, Wiring
from calc.blocks import EMBEDDINGS, LAYERS, LayerFacts, ModelFacts, head
from calc.dtype import DType
from calc.ledger import Component, Kind, Row, Section, Tensor
from calc.lifetimes import Context, gradient_of, lifetimes
from calc.megatron import megatron_layer
from calc.operators import AttentionCore
from calc.optimizers import persistent_gradient, states
from calc.plan import Plan
from calc.recomputation import CORE_MODULE, RECOMPUTATIONS
from calc.scenario import Attention, Precision, Recompute

B, S, L, V, P, N, D, R = sympy.symbols("B S L V P N D R", positive=True, integer=True)
H = N * D
GPT = {"B": B, "S": S, "L": L, "V": V, "P": P, "N": N, "K": N, "D": D, "H": H, "F": 4 * H, "R": R}
"""The closed forms' block: as many key and value heads as heads, an MLP of width 4H."""

LAYER = LayerFacts(
    wiring=Wiring.GPT2,
    activation=Activation.GELU_NEW,
    query_key_value_bias=True,
    output_bias=True,
    mlp_bias=True,
    query_key_norm=False,
    residual_dropout=True,
    core=AttentionCore(
        kernel=Attention.EAGER,
        dropout=True,
        fp32_softmax=False,
        grouped=False,
        closure=(),
        one_sequence=False,
        one_head=False,
        one_key_value_head=False,
    ),
)
MODEL = ModelFacts(
    wiring=Wiring.GPT2,
    attention=Attention.EAGER,
    embedding_dropout=True,
    one_sequence=False,
    tied_embeddings=True,
)
NUMERICS = Plan().numerics


def gpt2() -> list[tuple[Section, Any]]:
    """GPT-2's sections with their counts, the layer's being the symbol L."""
    embedding = EMBEDDINGS[Wiring.GPT2](MODEL, NUMERICS)
    layer = LAYERS[Wiring.GPT2](LAYER, NUMERICS)
    return [(embedding, 1), (layer, L), (head(MODEL, NUMERICS, embedding.held), 1)]


def parameters() -> dict[Tensor, Any]:
    """GPT-2's parameters, each with how many there are; tied ones once."""
    return {tensor: count for section, count in reversed(gpt2()) for tensor, _ in section.parameters()}


def assert_equal(left: Any, right: Any) -> None:
    assert sympy.expand(left - right) == 0


def test_parameters() -> None:
    counted = sum(count * tensor.numel(GPT) for tensor, count in parameters().items())
    learned_positions = P * H
    final_norm = 2 * H
    closed_form = closed_forms.transformer_parameters(num_layers=L, vocab_size=V, hidden_size=H)
    assert_equal(counted, closed_form + learned_positions + final_norm)


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
    held = sum(tensor.nbytes(PHI) for tensor in (weight, gradient, *states(weight, plan)))
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
    return weight, persistent_gradient(weight, plan) or gradient_of(weight)


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16, Precision.ZERO_16, Precision.TEXTBOOK_20])
@pytest.mark.parametrize(
    ("recompute", "layer_norms"),
    [(Recompute.NONE, 2), (Recompute.SELECTIVE, 2), (Recompute.FULL, 0)],
    ids=str,
)
def test_activation_bytes_per_layer(precision: Precision, recompute: Recompute, layer_norms: int) -> None:
    layer = RECOMPUTATIONS[recompute](megatron_layer(LAYER, Plan(precision=precision).numerics))
    kept = lifetimes(layer, Context(input_required=True)).saved
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
    (row,) = (row for row in layer_rows() if (row.name, row.module) == (name, module))
    elementwise = row.elementwise_flops * row.writes[0].numel(GPT)
    counted = sum(product.flops(GPT) for product in row.products) + elementwise
    closed_form = closed_forms.attention_flops(batch_size=B, sequence_length=S, hidden_size=H, num_heads=N)
    assert_equal(counted, getattr(closed_form, part))


def test_attention_flops_leave_out_the_mask_and_dropout_alone() -> None:
    attention = [row for row in layer_rows() if row.component is Component.ATTENTION]
    counted = {(row.name, row.module) for row in attention if row.products or row.elementwise_flops}
    assert counted - set(ATTENTION_ROWS.values()) == {
        ("mask", CORE_MODULE),
        ("dropout", CORE_MODULE),
        ("dropout", "attn"),
    }


def layer_rows() -> tuple[Row, ...]:
    return LAYERS[Wiring.GPT2](LAYER, NUMERICS).rows


@pytest.mark.parametrize(
    ("target", "in_features", "out_features"),
    [("c_attn", H, 3 * H), ("attn.c_proj", H, H), ("c_fc", H, 4 * H), ("mlp.c_proj", 4 * H, H)],
)
def test_lora_parameters(target: str, in_features: Any, out_features: Any) -> None:
    facts = AdapterFacts(target_modules=(target,), dropout=True, dtype=DType.FP32)
    adapted = adapt(LAYERS[Wiring.GPT2](LAYER, NUMERICS), facts, NUMERICS)
    added = sum(tensor.numel(GPT) for tensor, _ in adapted.parameters() if tensor.trainable)
    assert_equal(added, closed_forms.lora_parameters(in_features=in_features, out_features=out_features, rank=R))
