"""The parts of a transformers model as sections of rows: embeddings, layers, head (transformers 5.23.0, models/gpt2
and models/llama)."""

from dataclasses import dataclass

from .architecture import Activation, Wiring
from .attention import HEADS, KEY_VALUE_HEADS, AttentionCore, eager_attention
from .dtype import DType
from .ledger import Component, Kind, Row, Section, Tensor
from .lifetimes import NEXT
from .liger import liger_rms_norm, liger_rotary, liger_silu_mul
from .losses import LinearLoss, cross_entropy, linear_loss
from .operators import (
    CORE_MODULE,
    POSITION_IDS,
    TOKENS,
    Numerics,
    activation,
    embedding,
    layer_norm,
    linear,
    parameter,
    rms_norm,
    rotary,
    stamped,
)
from .primitives import add, dropout, frame, like, multiply, part, view
from .scenario import Attention
from .sdpa import WINDOW_MASK, sdpa_attention


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """All that decides which rows a layer has; sizes are not among it."""

    wiring: Wiring
    activation: Activation
    query_key_value_bias: bool
    output_bias: bool
    mlp_bias: bool
    query_key_norm: bool
    residual_dropout: bool
    sliding: bool
    """Its mask is the sliding window's."""
    frozen: bool
    liger: bool
    """Its norms, MLP and rotary positions are Liger's."""
    core: AttentionCore


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """All that decides which rows embeddings and head have."""

    wiring: Wiring
    causal_mask: bool
    """Eager attention takes a mask that the model makes."""
    sliding_mask: bool
    """The same of the layers with a sliding window."""
    embedding_dropout: bool
    window_mask: bool = False
    """scaled_dot_product_attention takes a mask in the layers with a sliding window."""
    one_sequence: bool
    tied_embeddings: bool
    frozen_embedding: bool
    liger: bool
    """The final norm is Liger's."""
    linear_loss: LinearLoss | None = None
    """Head and loss in one call; None: logits and their cross-entropy."""


INPUT_IDS = Tensor("input_ids", TOKENS, DType.INT64, Kind.INPUTS)
COS = "rotary.cos"
SIN = "rotary.sin"


def hidden_states(numerics: Numerics, name: str = "hidden_states") -> Tensor:
    """The residual stream."""
    return Tensor(name, ("B", "S", "H"), numerics.weights)


def rotary_tables(numerics: Numerics) -> tuple[Tensor, Tensor]:
    """cos and sin of the positions, in the residual stream's type, one pair for the whole model."""
    return Tensor(COS, ("S", "D"), numerics.weights), Tensor(SIN, ("S", "D"), numerics.weights)


def attention_mask(numerics: Numerics, *, sliding: bool) -> Tensor:
    """The additive mask of eager attention, made once per forward for all layers of a kind."""
    return Tensor("sliding_mask" if sliding else "causal_mask", ("B", "S", "S"), numerics.weights)


def _masks(facts: ModelFacts, numerics: Numerics) -> tuple[Tensor, ...]:
    """The masks the model makes, in their order."""
    exist = {False: facts.causal_mask, True: facts.sliding_mask}
    eager = tuple(attention_mask(numerics, sliding=sliding) for sliding in exist if exist[sliding])
    return (WINDOW_MASK,) if facts.window_mask else eager


def _mask_rows(facts: ModelFacts, numerics: Numerics) -> list[Row]:
    """create_causal_mask, create_sliding_window_causal_mask."""
    allowed, causal = (Tensor(f"mask.{name}", ("S", "S"), DType.BOOL) for name in ("allowed", "causal"))
    temporaries = (allowed, causal) if facts.window_mask else (allowed,)
    return [Row(name=mask.name, reads=(), writes=(mask,), temporaries=temporaries) for mask in _masks(facts, numerics)]


def gpt2_embeddings(facts: ModelFacts, numerics: Numerics) -> Section:
    """GPT2Model.forward up to its first block: token plus position embeddings, dropout."""
    tokens = hidden_states(numerics, "inputs_embeds")
    positions = Tensor("position_embeds", ("S", "H"), numerics.weights)
    output = hidden_states(numerics, f"{NEXT}hidden_states")
    total = hidden_states(numerics, "embeddings") if facts.embedding_dropout else output
    total_row = add(tokens, positions, total, one_sequence=facts.one_sequence)
    rows = [
        embedding(parameter("wte.weight", ("V", "H"), numerics, num_columns=1), INPUT_IDS, tokens),
        Row(name="arange", reads=(), writes=(POSITION_IDS,)),
        embedding(parameter("wpe.weight", ("P", "H"), numerics, num_columns=1), POSITION_IDS, positions),
        total_row,
        *_mask_rows(facts, numerics),
    ]
    if facts.embedding_dropout:
        rows.append(dropout(total, output))
    held = (tokens, POSITION_IDS, positions, *_masks(facts, numerics))
    return Section(
        name="embedding",
        rows=tuple(stamped(rows, Component.EMBEDDING, "transformer")),
        output=output,
        held=held,
        leaves=(tokens,),
    )


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
        *_mask_rows(facts, numerics),
        Row(name="rotary_emb", reads=(POSITION_IDS,), writes=(cos, sin), temporaries=angles),
    ]
    held = (tokens, POSITION_IDS, cos, sin, *_masks(facts, numerics))
    return Section(
        name="embedding",
        rows=tuple(stamped(rows, Component.EMBEDDING, "model")),
        output=tokens,
        held=held,
        leaves=(tokens,),
    )


def gpt2_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """GPT2Block."""
    x = hidden_states(numerics)
    middle, output = (
        hidden_states(numerics, "hidden_states after attention"),
        hidden_states(numerics, f"{NEXT}hidden_states"),
    )
    norm_1, normed = layer_norm("ln_1", x, "ln_1 output", numerics)
    attention, attended, held = _gpt2_attention(normed, facts, numerics)
    norm_2, normed_2 = layer_norm("ln_2", middle, "ln_2 output", numerics)
    up = Tensor("c_fc output", ("B", "S", "F"), numerics.linear)
    act, activated = activation(facts.activation, up, "activation output", numerics)
    projected = Tensor("mlp c_proj output", ("B", "S", "H"), numerics.linear)
    mlp = [
        *linear("mlp.c_fc", normed_2, up, ("H",), ("F",), numerics, bias=True, conv1d=True),
        *act,
        *linear("mlp.c_proj", activated, projected, ("F",), ("H",), numerics, bias=True, conv1d=True),
    ]
    if facts.residual_dropout:
        dropped = like(projected, "mlp output")
        mlp.append(dropout(projected, dropped))
        projected = dropped
    mask = (attention_mask(numerics, sliding=False),) if facts.core.kernel is Attention.EAGER else ()
    rows = [
        *norm_1,
        *stamped(attention, Component.ATTENTION, "attn"),
        add(attended, x, middle),
        frame(normed),
        *norm_2,
        *stamped(mlp, Component.MLP, "mlp"),
        add(middle, projected, output),
        frame(x, middle, attended, normed_2, projected, *held),
    ]
    return Section(
        name="layer",
        rows=tuple(rows),
        input=x,
        output=output,
        arguments=mask,
    )


def _gpt2_attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """GPT2Attention.forward."""
    core = facts.core
    fused = Tensor("qkv", ("B", "S", 3, "H"), numerics.linear)
    parts = tuple(Tensor(f"{name} part", ("B", "S", "H"), numerics.linear) for name in "qkv")
    q, k, v = (Tensor(name, HEADS, numerics.linear) for name in "qkv")
    rows = linear("attn.c_attn", x, fused, ("H",), (3, "H"), numerics, bias=True, conv1d=True)
    rows.append(part(fused, parts))
    # k's gradient, from a transposed product, can be seen as [B, S, H] at once; padding ends that.
    copies = core.gradients_by_head and not core.one_head
    copies_k = core.pads_heads and not core.one_head
    rows += [
        view(parts[1], k, copies_gradient=copies_k),
        view(parts[2], v, copies_gradient=copies),
        view(parts[0], q, copies_gradient=copies),
    ]
    attention_rows, out, held = _attention(q, k, v, facts, numerics)
    projected = Tensor("c_proj output", ("B", "S", "H"), numerics.compute)
    rows += [*attention_rows, *linear("attn.c_proj", out, projected, ("H",), ("H",), numerics, bias=True, conv1d=True)]
    if facts.residual_dropout:
        dropped = like(projected, "attn output")
        rows.append(dropout(projected, dropped))
        projected = dropped
    rows.append(frame(fused, q, k, v))
    return rows, projected, held


def _attention(
    q: Tensor, k: Tensor, v: Tensor, facts: LayerFacts, numerics: Numerics
) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """The attention core by the chosen kernel: its rows, its output, and what the layer's frame goes on holding."""
    if facts.core.kernel is Attention.EAGER:
        mask = attention_mask(numerics, sliding=facts.sliding)
        rows, out, weights = eager_attention(q, k, v, mask, facts.core, numerics)
        return stamped(rows, Component.ATTENTION, CORE_MODULE), out, (weights,)
    rows, out = sdpa_attention(q, k, v, facts.core, numerics)
    return stamped(rows, Component.ATTENTION, CORE_MODULE), out, ()


def llama_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """LlamaDecoderLayer; Mistral's, Qwen2's and Qwen3's differ in biases and head norms."""
    x = hidden_states(numerics)
    middle, output = (
        hidden_states(numerics, "hidden_states after attention"),
        hidden_states(numerics, f"{NEXT}hidden_states"),
    )
    norm = liger_rms_norm if facts.liger else rms_norm
    norm_1, normed = norm("input_layernorm", x, "input_layernorm output", ("H",), numerics)
    attention, attended, held = _llama_attention(normed, facts, numerics)
    norm_2, normed_2 = norm("post_attention_layernorm", middle, "post_attention_layernorm output", ("H",), numerics)
    mlp, down = _gated_mlp(normed_2, facts, numerics)
    rows = [
        *norm_1,
        *stamped(attention, Component.ATTENTION, "self_attn"),
        frame(normed),
        add(x, attended, middle),
        *norm_2,
        *stamped(mlp, Component.MLP, "mlp"),
        frame(normed_2),
        add(middle, down, output),
        frame(x, middle, *held),
    ]
    return Section(name="layer", rows=tuple(rows), input=x, output=output, modules=LLAMA_MODULES)


def _gated_mlp(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """LlamaMLP.forward: down(act(gate(x)) · up(x))."""
    gate, up, product = (
        Tensor(f"{name} output", ("B", "S", "F"), numerics.linear) for name in ("gate_proj", "up_proj", "gated")
    )
    act, activated = activation(facts.activation, gate, "activation output", numerics)
    down = Tensor("down_proj output", ("B", "S", "H"), numerics.linear)
    rows = [
        *linear("mlp.gate_proj", x, gate, ("H",), ("F",), numerics, bias=facts.mlp_bias),
        *([] if facts.liger else act),
        *linear("mlp.up_proj", x, up, ("H",), ("F",), numerics, bias=facts.mlp_bias),
        liger_silu_mul(gate, up, product) if facts.liger else multiply(activated, up, product),
        *linear("mlp.down_proj", product, down, ("F",), ("H",), numerics, bias=facts.mlp_bias),
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
        rows += linear(f"self_attn.{name}_proj", x, flat, ("H",), shape[2:], numerics, bias=facts.query_key_value_bias)
        if facts.query_key_norm and name != "v":
            norm = liger_rms_norm if facts.liger else rms_norm
            norm_rows, flat = norm(f"self_attn.{name}_norm", flat, f"{name}_norm output", ("D",), numerics)
            rows += norm_rows
            head = like(flat, name)
        by_head = core.gradients_by_head if name == "v" else not facts.liger  # q's and k's come from rotary positions
        rows.append(view(flat, head, copies_gradient=by_head and not one_head))
        heads.append(head)
    q, k, v = heads
    cos, sin = rotary_tables(numerics)
    if facts.liger:
        turning, turned_q, turned_k = liger_rotary(q, k, cos, sin, core)
    else:
        turning_q, turned_q = rotary("q", q, cos, sin)
        turning_k, turned_k = rotary("k", k, cos, sin)
        turning = [*turning_q, *turning_k]
    core_rows, out, held = _attention(turned_q, turned_k, v, facts, numerics)
    projected = Tensor("o_proj output", ("B", "S", "H"), numerics.compute)
    rows += [
        *turning,
        frame(q, k),
        *core_rows,
        *linear("self_attn.o_proj", out, projected, ("N", "D"), ("H",), numerics, bias=facts.output_bias),
        frame(turned_q, turned_k, v),
    ]
    return rows, projected, held


def head(facts: ModelFacts, numerics: Numerics, outside: tuple[Tensor, ...]) -> Section:
    """The final norm, the language-model head and the loss; `outside` is what the model's own frame held until the
    norm."""
    x = hidden_states(numerics)
    name = EMBEDDING_WEIGHTS[facts.wiring] if facts.tied_embeddings else "lm_head.weight"
    weight = parameter(name, ("V", "H"), numerics, num_columns=1)
    if facts.wiring is not Wiring.LLAMA:
        norm, normed = layer_norm("ln_f", x, "ln_f output", numerics)
    else:
        rms = liger_rms_norm if facts.liger else rms_norm
        norm, normed = rms("norm", x, "norm output", ("H",), numerics)
    if facts.linear_loss is not None:
        loss_rows, loss = linear_loss(normed, weight, facts.linear_loss, numerics)
        return Section(name="head", rows=(*norm, frame(x, *outside), *loss_rows), input=x, output=loss)
    logits = Tensor("logits", ("B", "S", "V"), numerics.compute)
    loss_rows, loss = cross_entropy(logits, one_sequence=facts.one_sequence)
    projection = linear("lm_head", normed, logits, ("H",), ("V",), numerics, weight=weight)
    rows = [*norm, frame(x, *outside), *stamped(projection, Component.HEAD, "lm_head"), *loss_rows, frame(normed)]
    return Section(name="head", rows=tuple(rows), input=x, output=loss)


EMBEDDING_WEIGHTS = {
    Wiring.GPT2: "wte.weight",
    Wiring.LLAMA: "embed_tokens.weight",
    Wiring.MEGATRON: "wte.weight",
}
BUFFERS: dict[Wiring, tuple[Tensor, ...]] = {
    Wiring.GPT2: (),
    Wiring.MEGATRON: (),
    Wiring.LLAMA: tuple(
        Tensor(f"rotary_emb.{name}", ("D/2",), DType.FP32, Kind.BUFFERS) for name in ("inv_freq", "original_inv_freq")
    ),
}
