"""Falcon's layer (transformers 5.23.0, models/falcon)."""

from dataclasses import replace
from functools import partial

from calc.attention import HEADS, KEY_VALUE_HEADS, AttentionCore, broadcast, merged
from calc.cache import updated
from calc.dtype import DType
from calc.kinds import LLAMA_ROTARY, SharedHeads
from calc.ledger import Component, Gradient, Row, Section, Shape, Tensor
from calc.lifetimes import NEXT
from calc.norms import layer_norm
from calc.operators import CORE_MODULE, POSITION_IDS, Numerics, activation, autocast_input, dropped, linear, stamped
from calc.primitives import add, copy, frame, like, matmul, part, scale, softmax, view, wider
from calc.rotary import rotary_tables, turned
from calc.scenario import Attention
from calc.sdpa import MASKED_KERNELS
from calc.wirings import Parts

from .embeddings import token_embeddings
from .facts import LayerFacts, hidden_states, with_cache
from .head import End
from .positions import rotary_buffers


def falcon_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """FalconDecoderLayer: attention and MLP side by side, or one after the other."""
    x, output = hidden_states(numerics), hidden_states(numerics, f"{NEXT}hidden_states")
    norms = facts.kind.norms
    norm_1, normed = _norm(norms.before_attention, x, numerics)
    attending, attended, weights = _attention(normed, facts, numerics)
    if facts.kind.parallel:
        norm_2, normed_2 = _norm(norms.before_mlp, x, numerics) if norms.before_mlp else ([], normed)
        mlp, down = _mlp(normed_2, facts, numerics)
        both = like(down, "mlp and attention output")
        dropping, given = dropped(both, "both after dropout", on=facts.residual_dropout)
        rows = [
            *norm_1,
            *norm_2,
            *stamped(attending, Component.ATTENTION, "self_attention"),
            *stamped(mlp, Component.MLP, "mlp"),
            _added_in_place(down, attended, both),
            *dropping,
            add(x, given, output),
            frame(x, normed, normed_2, attended, both, *weights),
        ]
        layer = Section(name="layer", rows=tuple(rows), input=x, output=output, modules=MODULES, returned=weights)
        return with_cache(layer, facts.core, numerics)
    drop_1, added = dropped(attended, "attention output after dropout", on=facts.core.dropout)
    middle = hidden_states(numerics, "hidden_states after attention")
    norm_2, normed_2 = _norm(norms.before_mlp, middle, numerics)
    mlp, down = _mlp(normed_2, facts, numerics)
    drop_2, given = dropped(down, "mlp output after dropout", on=facts.residual_dropout)
    rows = [
        *norm_1,
        *stamped(attending, Component.ATTENTION, "self_attention"),
        *stamped([*drop_1, add(x, added, middle)], Component.ATTENTION, "self_attention"),
        *norm_2,
        *stamped([*mlp, *drop_2], Component.MLP, "mlp"),
        add(middle, given, output),
        frame(x, normed, attended, middle, normed_2, down, *weights),
    ]
    layer = Section(name="layer", rows=tuple(rows), input=x, output=output, modules=MODULES, returned=weights)
    return with_cache(layer, facts.core, numerics)


MODULES = (
    "self_attention.query_key_value",
    "self_attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
    "post_attention_layernorm",
    "ln_attn",
    "ln_mlp",
    "input_layernorm",
)


def _norm(name: str | None, x: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor]:
    assert name is not None
    return layer_norm(name, x, f"{name} output", ("H",), numerics)


def _added_in_place(x: Tensor, other: Tensor, out: Tensor) -> Row:
    """`x += other`."""
    gradients = (Gradient(of=x, passes=True), Gradient(of=other, passes=True))
    return Row(name="+=", reads=(x, other), writes=(out,), gradients=gradients, is_view=True, elementwise_flops=1)


def falcon_linear(name: str, x: Tensor, out: Tensor, in_dims: Shape, out_dims: Shape, numerics: Numerics) -> list[Row]:
    """FalconLinear: `x @ weight.T`. Of a turned weight autocast keeps no cast from use to use."""
    rows = linear(name, x, out, in_dims, out_dims, numerics)
    if not numerics.autocast:
        return rows
    casting = next(row for row in rows if row.name == "to" and row.reads[0].name == f"{name}.weight")
    [cached] = casting.writes
    own = Tensor(cached.name, cached.shape, cached.dtype)
    return [_with_instead(row, cached, own) for row in rows]


def _with_instead(row: Row, old: Tensor, new: Tensor) -> Row:
    """`row` with another tensor in the place of `old`."""

    def swapped(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(new if each is old else each for each in tensors)

    gradients = tuple(
        replace(each, of=new if each.of is old else each.of, needs=swapped(each.needs)) for each in row.gradients
    )
    return replace(row, reads=swapped(row.reads), writes=swapped(row.writes), gradients=gradients)


def _mlp(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """FalconMLP.forward."""
    up = Tensor("dense_h_to_4h output", ("B", "S", "F"), numerics.linear)
    act, activated = activation(facts.kind.activation, up, "activation output", numerics)
    down = Tensor("dense_4h_to_h output", ("B", "S", "H"), numerics.linear)
    rows = [
        *falcon_linear("mlp.dense_h_to_4h", x, up, ("H",), ("F",), numerics),
        *act,
        *falcon_linear("mlp.dense_4h_to_h", activated, down, ("F",), ("H",), numerics),
    ]
    return rows, down


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """FalconAttention.forward: the rows, the output, and the probabilities, if they are returned."""
    parting, fused, (q, k, v) = _parted(facts, numerics)
    made = rotary_tables(LLAMA_ROTARY, numerics, sliding=False)
    turning, (turned_q, turned_k), _ = turned(q, k, made, LLAMA_ROTARY)
    core = replace(facts.core, dropout=False)
    cache_rows, key, value = updated(turned_k, v, core.cache, numerics)
    if core.kernel is Attention.EAGER:
        core_rows, out, weights = _eager(turned_q, key, value, core, numerics)
    else:
        core_rows, out = MASKED_KERNELS[core.kernel](turned_q, key, value, core, numerics)
        weights = ()
    projected = Tensor("dense output", ("B", "S", "H"), numerics.compute)
    rows = [
        *falcon_linear("self_attention.query_key_value", x, fused, ("H",), fused.shape[2:], numerics),
        *parting,
        *turning,
        *cache_rows,
        *stamped(core_rows, Component.ATTENTION, CORE_MODULE),
        *falcon_linear("self_attention.dense", out, projected, ("N", "D"), ("H",), numerics),
        frame(POSITION_IDS, fused, turned_q, key, value),
    ]
    return rows, projected, weights


ALL_HEADS: Shape = ("N+2K", "D")
FUSED_BY_HEAD: Shape = ("N", 3, "D")


def _parted(facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, Tensor, Tensor]]:
    """FalconAttention._split_heads. Queries are views of the projection; so are keys and values that each head has of
    its own. Else they are picked by a list of one index, which copies them; the new decoder writes all three out for
    all query heads."""
    shared = facts.kind.shared_heads
    q = Tensor("q", HEADS, numerics.linear)
    if shared is SharedHeads.OWN:
        fused = Tensor("query_key_value output", ("B", "S", *FUSED_BY_HEAD), numerics.linear)
        heads = q, like(q, "k"), like(q, "v")
        return [part(fused, (each,)) for each in heads], fused, heads
    fused = Tensor("query_key_value output", ("B", "S", *ALL_HEADS), numerics.linear)
    k, v = (Tensor(name, KEY_VALUE_HEADS, numerics.linear) for name in "kv")
    picking = [part(fused, (q,)), *_picked(fused, k), *_picked(fused, v)]
    if shared is not SharedHeads.EXPANDED:
        return picking, fused, (q, k, v)
    wide = tuple(like(q, f"{each.name} of all heads") for each in (q, k, v))
    writing = [
        copy(each, out, name="flatten", copies_gradient=each is not q)
        for each, out in zip((q, k, v), wide, strict=True)
    ]
    return [*picking, *writing, frame(k, v)], fused, (wide[0], wide[1], wide[2])


def _picked(x: Tensor, out: Tensor) -> list[Row]:
    """`x[..., [-1], :]`: keeps the index; its gradient is zeros that are added to in place (index_backward)."""
    index = Tensor(f"index of {out.name}", (1,), DType.INT64)
    making = Row(name="tensor", reads=(), writes=(index,))
    return [making, Row(name="index", reads=(x, index), writes=(out,), gradients=(Gradient(of=x),), saves=(index,))]


def _eager(
    q: Tensor, k: Tensor, v: Tensor, core: AttentionCore, numerics: Numerics
) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """softmax(q·kᵀ/√d + mask)·v in the type of the layer's input: the rows, the output and the probabilities."""
    rows_k, key = autocast_input(k, numerics, "scores")
    rows_q, query = autocast_input(q, numerics, "scores")
    merge_q, query = merged(query, core.merges_query_heads_by_copy)
    by_copy = core.merges_key_value_heads_by_copy("k", cast=bool(rows_k))
    merge_k, key = broadcast(key, core) if core.broadcasts_heads else merged(key, by_copy)
    scores, scaled = (Tensor(f"scores{suffix}", core.scores, numerics.compute) for suffix in ("", " scaled"))
    mask = core.mask(numerics)
    masked = like(scaled, "scores masked", dtype=wider(scaled.dtype, mask.dtype))
    weights = like(masked, "attention weights")
    rows = [
        *rows_k,
        *rows_q,
        *merge_q,
        *merge_k,
        matmul("scores", query, key, scores, core.scores_product),
        replace(scale(scores, scaled, name="div_"), is_view=True),
        add(scaled, mask, masked, name="mask"),
        softmax(masked, weights),
        frame(scaled),
    ]
    casts_v, value = autocast_input(v, numerics, "values")
    casts_w, lower = autocast_input(weights, numerics, "values")
    by_copy = core.merges_heads_by_copy and not core.cached_by_head
    merge_v, value = broadcast(value, core) if core.broadcasts_heads else merged(value, by_copy)
    by_head, out = (Tensor(name, HEADS, numerics.compute) for name in ("attention by head", "attention output"))
    rows += [
        *casts_v,
        *casts_w,
        *merge_v,
        matmul("values", lower, value, by_head, core.values_product(value)),
        copy(by_head, out, copies_gradient=core.merges_heads_by_copy) if core.parts_heads else view(by_head, out),
    ]
    return rows, out, (weights,)


END = End(embedding_weight="word_embeddings.weight", final_norm="ln_f", layers="transformer.h")

PARTS = Parts(
    embeddings=partial(token_embeddings, END.embedding_weight, "transformer"),
    layer=falcon_layer,
    end=END,
    buffers=rotary_buffers,
)
