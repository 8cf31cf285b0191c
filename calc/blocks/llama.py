"""Llama's embeddings and layer, and what differs from them by facts (transformers 5.23.0, models/llama)."""

from calc.architecture import QueryKeyNorm
from calc.attention import HEADS, KEY_VALUE_HEADS
from calc.dtype import DType
from calc.ledger import Component, Kind, Row, Section, Tensor
from calc.lifetimes import NEXT
from calc.liger import liger_rotary, liger_silu_mul
from calc.norms import norm_of
from calc.operators import POSITION_IDS, Numerics, activation, embedding, linear, parameter, rotary, stamped
from calc.prefix import with_prefixes
from calc.primitives import add, frame, like, multiply, view

from .attention import attention
from .facts import INPUT_IDS, LayerFacts, ModelFacts, hidden_states, mask_rows, rotary_tables, with_cache


def llama_embeddings(facts: ModelFacts, numerics: Numerics) -> Section:
    """LlamaModel.forward up to its first layer: token embeddings, mask, rotary tables."""
    tokens = hidden_states(numerics, "inputs_embeds")
    cos, sin = rotary_tables(numerics)
    angles = tuple(
        Tensor(f"rotary.{name}", ("S", "D"), DType.FP32) for name in ("angles", "cos in fp32", "sin in fp32")
    )
    rows = [
        embedding(parameter("embed_tokens.weight", ("V", "H"), numerics, num_columns=1), INPUT_IDS, tokens),
        Row(name="arange", reads=(), writes=(POSITION_IDS,)),
        *mask_rows(facts.masks),
        Row(name="rotary_emb", reads=(POSITION_IDS,), writes=(cos, sin), temporaries=angles),
    ]
    held = (tokens, POSITION_IDS, cos, sin, *facts.masks)
    return Section(
        name="embedding",
        rows=tuple(stamped(rows, Component.EMBEDDING, "model")),
        output=tokens,
        held=held,
        leaves=(tokens,),
    )


def llama_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """LlamaDecoderLayer; Mistral's, Qwen2's and Qwen3's differ in biases and head norms."""
    x = hidden_states(numerics)
    middle, output = (
        hidden_states(numerics, "hidden_states after attention"),
        hidden_states(numerics, f"{NEXT}hidden_states"),
    )
    norm = norm_of(facts.kind.norm, liger=facts.liger)
    norm_1, normed = norm("input_layernorm", x, "input_layernorm output", ("H",), numerics)
    attending, attended, held = _llama_attention(normed, facts, numerics)
    norm_2, normed_2 = norm("post_attention_layernorm", middle, "post_attention_layernorm output", ("H",), numerics)
    mlp, down = _gated_mlp(normed_2, facts, numerics)
    rows = [
        *norm_1,
        *stamped(attending, Component.ATTENTION, "self_attn"),
        frame(normed),
        add(x, attended, middle),
        *norm_2,
        *stamped(mlp, Component.MLP, "mlp"),
        frame(normed_2),
        add(middle, down, output),
        frame(x, middle, *held),
    ]
    layer = Section(name="layer", rows=tuple(rows), input=x, output=output, modules=LLAMA_MODULES)
    return with_cache(layer, facts.core, numerics)


def _gated_mlp(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """LlamaMLP.forward: down(act(gate(x)) · up(x))."""
    gate, up, product = (
        Tensor(f"{name} output", ("B", "S", "F"), numerics.linear) for name in ("gate_proj", "up_proj", "gated")
    )
    act, activated = activation(facts.kind.activation, gate, "activation output", numerics)
    down = Tensor("down_proj output", ("B", "S", "H"), numerics.linear)
    rows = [
        *linear("mlp.gate_proj", x, gate, ("H",), ("F",), numerics, bias=facts.kind.mlp_bias),
        *([] if facts.liger else act),
        *linear("mlp.up_proj", x, up, ("H",), ("F",), numerics, bias=facts.kind.mlp_bias),
        liger_silu_mul(gate, up, product) if facts.liger else multiply(activated, up, product),
        *linear("mlp.down_proj", product, down, ("F",), ("H",), numerics, bias=facts.kind.mlp_bias),
    ]
    return rows, down


LLAMA_MODULES = (
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
    "input_layernorm",
    "post_attention_layernorm",
)


def _llama_attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """LlamaAttention.forward: q, k, v; head norms; rotary positions; core; output."""
    core = facts.core
    rows: list[Row] = []
    projections = (
        ("q", HEADS, core.one_head),
        ("k", KEY_VALUE_HEADS, core.one_key_value_head),
        ("v", KEY_VALUE_HEADS, core.one_key_value_head),
    )
    heads: list[Tensor] = []
    for name, shape, one_head in projections:
        flat, head = Tensor(f"{name}_proj output", shape, numerics.linear), Tensor(name, shape, numerics.linear)
        rows += linear(
            f"self_attn.{name}_proj", x, flat, ("H",), shape[2:], numerics, bias=facts.kind.query_key_value_bias
        )
        if facts.kind.query_key_norm is QueryKeyNorm.HEAD and name != "v":
            norm = norm_of(facts.kind.norm, liger=facts.liger)
            norm_rows, flat = norm(f"self_attn.{name}_norm", flat, f"{name}_norm output", ("D",), numerics)
            rows += norm_rows
            head = like(flat, name)
        copies = not facts.liger and not one_head  # q's and k's gradients come from rotary positions
        if name == "v":
            copies = core.copies_gradient_by_token(one_head=one_head, cast=numerics.linear is not numerics.weights)
        rows.append(view(flat, head, copies_gradient=copies))
        heads.append(head)
    q, k, v = heads
    cos, sin = rotary_tables(numerics)
    if facts.liger:
        turning, turned_q, turned_k = liger_rotary(q, k, cos, sin, core)
    else:
        turning_q, turned_q = rotary("q", q, cos, sin)
        turning_k, turned_k = rotary("k", k, cos, sin)
        turning = [*turning_q, *turning_k]
    turning.append(frame(q, k))
    if core.prefixed:
        prefix_rows, turned_k, v = with_prefixes(turned_k, v, numerics)
        turning += prefix_rows
    core_rows, out, held = attention(turned_q, turned_k, v, facts, numerics)
    projected = Tensor("o_proj output", ("B", "S", "H"), numerics.compute)
    rows += [
        *turning,
        *core_rows,
        *linear("self_attn.o_proj", out, projected, ("N", "D"), ("H",), numerics, bias=facts.kind.output_bias),
        frame(turned_q, turned_k, v),
    ]
    return rows, projected, held


LLAMA_BUFFERS = tuple(
    Tensor(f"rotary_emb.{name}", ("D/2",), DType.FP32, Kind.BUFFERS) for name in ("inv_freq", "original_inv_freq")
)
