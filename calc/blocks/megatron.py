"""Megatron-LM's fused GPT block: what it keeps for backward is 34·B·S·H + 5·B·N·S² bytes in half precision.

As counted by Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.1.
Fused are: scale, mask and softmax; bias and GELU; bias, dropout and residual addition. Weights have the type of the
arithmetic: autocast has no part in it.
"""

from dataclasses import replace

from calc.attention import HEADS, SCORES, SCORES_PRODUCT, VALUES_PRODUCT
from calc.dtype import DType
from calc.ledger import Component, Gradient, Row, Section, Tensor
from calc.lifetimes import NEXT
from calc.norms import layer_norm
from calc.operators import (
    CORE_MODULE,
    Numerics,
    linear,
    stamped,
)
from calc.primitives import add, copy, dropout, like, matmul, part, scale, softmax, unary
from calc.scenario import Attention
from calc.sdpa import flash_attention
from calc.wirings import Parts

from .facts import LayerFacts, hidden_states
from .gpt2 import GPT2_END, gpt2_embeddings


def megatron_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """ParallelTransformerLayer on one GPU."""
    x, output = hidden_states(numerics), hidden_states(numerics, f"{NEXT}hidden_states")
    middle = hidden_states(numerics, "hidden_states after attention")
    norm_1, normed = layer_norm("input_layernorm", x, "input_layernorm output", ("H",), numerics)
    attention, attended = _attention(normed, facts, numerics)
    norm_2, normed = layer_norm("post_attention_layernorm", middle, "post_attention_layernorm output", ("H",), numerics)
    up = Tensor("dense_h_to_4h output", ("B", "S", "F"), numerics.compute)
    activated, down = like(up, "activation output"), like(x, "dense_4h_to_h output")
    mlp = [
        *linear("mlp.dense_h_to_4h", normed, up, ("H",), ("F",), numerics, bias=facts.kind.mlp_bias),
        unary("bias_gelu", up, activated),
        *linear("mlp.dense_4h_to_h", activated, down, ("F",), ("H",), numerics, bias=facts.kind.mlp_bias),
        *_dropout_add(down, middle, output, facts),
    ]
    rows = [
        *norm_1,
        *stamped([*attention, *_dropout_add(attended, x, middle, facts)], Component.ATTENTION, "self_attention"),
        *norm_2,
        *stamped(mlp, Component.MLP, "mlp"),
    ]
    return Section(name="layer", rows=tuple(rows), input=x, output=output)


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """ParallelAttention: q, k and v are views of one projection."""
    fused = Tensor("qkv", ("B", "S", 3, "H"), numerics.compute)
    q, k, v = (Tensor(name, HEADS, numerics.compute) for name in "qkv")
    core, out = _core(q, k, v, facts, numerics)
    projected = like(x, "dense output")
    rows = [
        *linear(
            "self_attention.query_key_value", x, fused, ("H",), (3, "H"), numerics, bias=facts.kind.query_key_value_bias
        ),
        part(fused, (q, k, v)),
        *stamped(core, Component.ATTENTION, CORE_MODULE),
        *linear("self_attention.dense", out, projected, ("N", "D"), ("H",), numerics, bias=facts.kind.output_bias),
    ]
    return rows, projected


def _core(q: Tensor, k: Tensor, v: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """CoreAttention: scaled scores, fused mask and softmax, dropout, weighted values in the order of the tokens."""
    if facts.core.kernel is Attention.FLASH:
        return flash_attention(q, k, v, facts.core, numerics)
    out = Tensor("attention output", HEADS, numerics.compute)
    scores, scaled, weights = (
        Tensor(name, SCORES, numerics.compute) for name in ("scores", "scores scaled", "attention weights")
    )
    by_head = like(out, "attention by head")
    rows = [
        matmul("scores", q, k, scores, SCORES_PRODUCT),
        _scale_in_place(scores, scaled),
        replace(softmax(scaled, weights), backward_temporaries=()),  # a kernel of its own, which writes over its input
    ]
    if facts.core.dropout:
        dropped = like(weights, "attention weights after dropout")
        rows.append(dropout(weights, dropped))
        weights = dropped
    return [*rows, matmul("values", weights, v, by_head, VALUES_PRODUCT), copy(by_head, out)], out


def _scale_in_place(x: Tensor, out: Tensor) -> Row:
    """baddbmm's alpha: the product's kernel scales, no tensor is made."""
    return replace(scale(x, out), gradients=(Gradient(of=x, passes=True),), is_view=True)


def _dropout_add(x: Tensor, residual: Tensor, out: Tensor, facts: LayerFacts) -> list[Row]:
    """bias_dropout_add_fused_train: one kernel, which keeps the dropout's mask alone."""
    if not facts.residual_dropout:
        return [add(residual, x, out)]
    mask = replace(like(out, f"{x.name}.mask"), dtype=DType.BOOL)
    row = Row(
        name="dropout_add",
        reads=(x, residual),
        writes=(out, mask),
        gradients=(Gradient(of=x), Gradient(of=residual, passes=True)),
        saves=(mask,),
        elementwise_flops=2,
    )
    return [row]


PARTS = Parts(embeddings=gpt2_embeddings, layer=megatron_layer, end=GPT2_END)
