"""OPT's embeddings and layer (transformers 5.23.0, models/opt)."""

from dataclasses import replace

from calc.attention import HEADS
from calc.cache import updated
from calc.dtype import DType
from calc.ledger import Component, Row, Section, Tensor
from calc.lifetimes import NEXT
from calc.norms import layer_norm
from calc.operators import POSITION_IDS, TOKENS, Numerics, dropped, embedding, linear, parameter, stamped
from calc.primitives import add, frame, like, scale, view
from calc.wirings import Parts

from .attention import attention, copies_key_gradient
from .facts import INPUT_IDS, LayerFacts, ModelFacts, hidden_states, mask_rows, with_cache
from .head import End, head
from .mlp import plain_mlp


def _positions(cached: bool) -> Tensor:
    """Counted along a mask of ones, for each sequence apart; those in a cache as well."""
    return like(POSITION_IDS, POSITION_IDS.name, shape=("B", "S+T") if cached else TOKENS)


def opt_embeddings(facts: ModelFacts, numerics: Numerics) -> Section:
    """OPTDecoder.forward up to its first layer: token plus position embeddings."""
    tokens = hidden_states(numerics, "inputs_embeds")
    counted = _positions(facts.generates)
    ones, counts, masked, shifted = (
        like(counted, name, dtype=DType.FP32) for name in ("ones", "cumsum", "positions masked", "positions from 0")
    )
    table_rows = like(counted, "rows of the table", shape=TOKENS)
    positions = hidden_states(numerics, "position_embeds")
    output = hidden_states(numerics, f"{NEXT}hidden_states")
    rows = [
        embedding(parameter("embed_tokens.weight", ("V", "H"), numerics, num_columns=1), INPUT_IDS, tokens),
        Row(name="ones", reads=(), writes=(ones,)),
        Row(name="cumsum", reads=(ones,), writes=(counts,)),
        Row(name="mul", reads=(counts, ones), writes=(masked,)),
        Row(name="sub", reads=(masked,), writes=(shifted,)),
        Row(name="to", reads=(shifted,), writes=(counted,)),
        frame(counts),
        *mask_rows(facts.masks),
        Row(name="add", reads=(counted,), writes=(table_rows,)),
        embedding(parameter("embed_positions.weight", ("P+2", "H"), numerics, num_columns=1), table_rows, positions),
        add(tokens, positions, output),
    ]
    return Section(
        name="embedding",
        rows=tuple(stamped(rows, Component.EMBEDDING, "model.decoder")),
        output=output,
        held=(tokens, ones, counted, positions, *facts.masks),
        leaves=(tokens,),
    )


def opt_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """OPTDecoderLayer with its norms before attention and MLP."""
    x = hidden_states(numerics)
    middle = hidden_states(numerics, "hidden_states after attention")
    output = hidden_states(numerics, f"{NEXT}hidden_states")
    norm_1, normed = layer_norm("self_attn_layer_norm", x, "self_attn_layer_norm output", ("H",), numerics)
    attending, attended, held = _attention(normed, facts, numerics)
    drop_1, attended_dropped = dropped(attended, "attention output after dropout", on=facts.residual_dropout)
    norm_2, normed_2 = layer_norm("final_layer_norm", middle, "final_layer_norm output", ("H",), numerics)
    mlp, down = plain_mlp("fc1", "fc2", normed_2, facts, numerics)
    drop_2, down_dropped = dropped(down, "fc2 output after dropout", on=facts.residual_dropout)
    rows = [
        *norm_1,
        *stamped([*attending, frame(normed), *drop_1], Component.ATTENTION, "self_attn"),
        add(x, attended_dropped, middle),
        *norm_2,
        *stamped([*mlp, *drop_2], Component.MLP, ""),
        add(middle, down_dropped, output),
        frame(x, middle, *held),
    ]
    layer = Section(name="layer", rows=tuple(rows), input=x, output=output, modules=MODULES)
    return with_cache(layer, facts.core, numerics)


MODULES = (
    *(f"self_attn.{name}_proj" for name in ("k", "v", "q", "out")),
    "self_attn_layer_norm",
    "fc1",
    "fc2",
    "final_layer_norm",
)


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """OPTAttention.forward: q is scaled, the scores are multiplied by 1."""
    core = facts.core
    q_flat, k_flat, v_flat = (Tensor(f"{name}_proj output", HEADS, numerics.linear) for name in "qkv")
    q_scaled = like(q_flat, "q_proj output scaled")
    q, k, v = (Tensor(name, HEADS, numerics.linear) for name in "qkv")

    def projection(name: str, out: Tensor) -> list[Row]:
        bias = facts.kind.query_key_value_bias
        return linear(f"self_attn.{name}_proj", x, out, ("H",), ("N", "D"), numerics, bias=bias)

    by_head = core.gradients_by_head and not core.one_head
    cache_rows, key, value = updated(k, v, core.cache, numerics)
    core_rows, out, held = attention(q, key, value, facts, numerics, _positions(core.is_cached))
    projected = Tensor("out_proj output", ("B", "S", "H"), numerics.compute)
    rows = [
        *projection("q", q_flat),
        scale(q_flat, q_scaled),
        view(q_scaled, q, copies_gradient=by_head),
        *projection("k", k_flat),
        *projection("v", v_flat),
        view(k_flat, k, copies_gradient=copies_key_gradient(core)),
        view(v_flat, v, copies_gradient=by_head),
        *cache_rows,
        *core_rows,
        *linear("self_attn.out_proj", out, projected, ("N", "D"), ("H",), numerics, bias=facts.kind.output_bias),
        frame(q, key, value),
    ]
    return rows, projected, held


END = End(embedding_weight="embed_tokens.weight", final_norm="final_layer_norm", layers="model.decoder.layers")


def opt_head(facts: ModelFacts, end: End, numerics: Numerics, outside: tuple[Tensor, ...]) -> Section:
    """The final norm is registered before the layers (OPTDecoder)."""
    return replace(head(facts, end, numerics, outside), beyond_layers=(end.final_norm,))


PARTS = Parts(embeddings=opt_embeddings, layer=opt_layer, end=END, head=opt_head)
