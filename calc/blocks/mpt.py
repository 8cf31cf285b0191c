"""MPT's embeddings and layer (transformers 5.23.0, models/mpt)."""

from calc.attention import HEADS, merged, weighted_values
from calc.cache import updated
from calc.dtype import DType
from calc.ledger import Component, Gradient, Row, Section, Tensor
from calc.lifetimes import NEXT
from calc.norms import layer_norm_without_bias
from calc.operators import CORE_MODULE, Numerics, autocast_input, embedding, linear, parameter, stamped
from calc.primitives import add, cast, frame, like, matmul, part, scale, softmax, view
from calc.wirings import Parts

from .facts import INPUT_IDS, LayerFacts, ModelFacts, hidden_states, mask_rows, with_cache
from .head import End
from .mlp import plain_mlp

ALIBI = Tensor("alibi", ("N", "P"), DType.FP32)
"""What is added to the scores, for all positions the model may have."""


def mpt_embeddings(facts: ModelFacts, numerics: Numerics) -> Section:
    """MptModel.forward up to its first block: token embeddings, ALiBi, a mask of booleans made of an additive one."""
    tokens = hidden_states(numerics, "inputs_embeds")
    [additive] = facts.masks
    rows = [
        embedding(parameter("wte.weight", ("V", "H"), numerics, num_columns=1), INPUT_IDS, tokens),
        Row(name="alibi", reads=(), writes=(ALIBI,)),
        *mask_rows(facts.masks),
        Row(name="to", reads=(additive,), writes=(_unseen(additive),)),
    ]
    return Section(
        name="embedding",
        rows=tuple(stamped(rows, Component.EMBEDDING, "transformer")),
        output=tokens,
        held=(tokens, ALIBI, _unseen(additive)),
        leaves=(tokens,),
    )


def _unseen(additive: Tensor) -> Tensor:
    return like(additive, "mask of what is not seen", dtype=DType.BOOL)


def mpt_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """MptBlock."""
    x, output = hidden_states(numerics), hidden_states(numerics, f"{NEXT}hidden_states")
    middle = hidden_states(numerics, "hidden_states after attention")
    norm_1, normed = layer_norm_without_bias("norm_1", x, "norm_1 output", ("H",), numerics)
    attending, attended, weights = _attention(normed, facts, numerics)
    norm_2, normed_2 = layer_norm_without_bias("norm_2", middle, "norm_2 output", ("H",), numerics)
    mlp, down = plain_mlp("ffn.up_proj", "ffn.down_proj", normed_2, facts, numerics)
    rows = [
        *norm_1,
        *stamped(attending, Component.ATTENTION, "attn"),
        add(attended, x, middle),
        *norm_2,
        frame(normed),
        *stamped(mlp, Component.MLP, "ffn"),
        add(down, middle, output),
        frame(down),
        frame(x, middle, attended, normed_2, weights),
    ]
    layer = Section(name="layer", rows=tuple(rows), input=x, output=output, returned=(weights,))
    return with_cache(layer, facts.core, numerics)


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, Tensor]:
    """MptAttention.forward: the rows, the output and the probabilities, which the layer returns."""
    core = facts.core
    fused = Tensor("Wqkv output", ("B", "S", 3, "H"), numerics.linear)
    parts = tuple(Tensor(f"{name} part", ("B", "S", "H"), numerics.linear) for name in "qkv")
    q, k, v = (Tensor(name, HEADS, numerics.linear) for name in "qkv")
    copies = (not core.one_head, False, not core.one_head)  # the gradient of k is one of a transposed product
    cache_rows, key, value = updated(k, v, core.cache, numerics)
    core_rows, filled, weights = _probabilities(q, key, value, facts, numerics)
    value_rows, out, weights = weighted_values(weights, value, core, numerics)
    projected = Tensor("out_proj output", ("B", "S", "H"), numerics.compute)
    rows = [
        *linear("attn.Wqkv", x, fused, ("H",), (3, "H"), numerics),
        part(fused, parts),
        *(view(flat, head, copies_gradient=each) for flat, head, each in zip(parts, (q, k, v), copies, strict=True)),
        *cache_rows,
        *stamped([*core_rows, *value_rows], Component.ATTENTION, CORE_MODULE),
        *linear("attn.out_proj", out, projected, ("N", "D"), ("H",), numerics),
        frame(fused, q, key, value, filled),
    ]
    return rows, projected, weights


def _probabilities(
    q: Tensor, k: Tensor, v: Tensor, facts: LayerFacts, numerics: Numerics
) -> tuple[list[Row], Tensor, Tensor]:
    """softmax(q·kᵀ/√d + alibi, what is not seen left out): the rows, the scores last, the probabilities."""
    core = facts.core
    casts_k, key = autocast_input(k, numerics, "scores")
    casts_q, query = autocast_input(q, numerics, "scores")
    merge_q, query = merged(query, core.merges_query_by_copy(cast=bool(casts_q)))
    merge_k, key = merged(key, core.merges_key_value_heads_by_copy("k", cast=bool(casts_k)))
    scores, scaled = (Tensor(f"scores{suffix}", core.scores, numerics.compute) for suffix in ("", " scaled"))
    biased, filled, weights = (
        like(scores, name, dtype=DType.FP32) for name in ("scores with alibi", "scores masked", "attention weights")
    )
    unseen = _unseen(core.mask(numerics))
    gradient = Gradient(of=biased)
    rows = [
        *casts_k,
        *casts_q,
        *merge_q,
        *merge_k,
        matmul("scores", query, key, scores, core.scores_product),
        scale(scores, scaled),
        add(scaled, ALIBI, biased),
        Row(name="masked_fill", reads=(biased, unseen), writes=(filled,), gradients=(gradient,), saves=(unseen,)),
        softmax(filled, weights),
    ]
    if v.dtype is weights.dtype:
        return rows, filled, weights
    rounded = like(weights, f"attention weights in {v.dtype.label}", dtype=v.dtype)
    return [*rows, cast(weights, rounded)], filled, rounded


PARTS = Parts(
    embeddings=mpt_embeddings,
    layer=mpt_layer,
    end=End(embedding_weight="wte.weight", final_norm="norm_f", layers="transformer.blocks"),
)
