"""Bloom's embeddings and layer (transformers 5.23.0, models/bloom)."""

from dataclasses import replace

from calc.attention import HEADS, merged, probabilities
from calc.cache import updated
from calc.dtype import DType
from calc.ledger import Component, Row, Section, Shape, Tensor
from calc.lifetimes import NEXT
from calc.norms import layer_norm
from calc.operators import CORE_MODULE, Numerics, autocast_input, dropped, embedding, linear, parameter, stamped
from calc.primitives import add, copy, frame, like, matmul, part, unary, view, wider
from calc.scenario import SavedOperator
from calc.wirings import Parts

from .facts import INPUT_IDS, LayerFacts, ModelFacts, hidden_states, mask_rows, with_cache
from .head import End

FUSED: Shape = ("N", 3, "D")
SLOPES = Tensor("alibi slopes", ("N",), DType.FP32)


def alibi(numerics: Numerics, *, cached: bool) -> Tensor:
    """What ALiBi adds to the scores: one number for each head and key, for all sequences apart."""
    return Tensor("alibi", ("B", "N", "S+T" if cached else "S"), numerics.weights)


def bloom_embeddings(facts: ModelFacts, numerics: Numerics) -> Section:
    """BloomModel.forward up to its first block: token embeddings, their norm, ALiBi, mask."""
    tokens = hidden_states(numerics, "inputs_embeds")
    norm, output = layer_norm("word_embeddings_layernorm", tokens, f"{NEXT}hidden_states", ("H",), numerics)
    biases = alibi(numerics, cached=facts.generates)
    rows = [
        embedding(parameter("word_embeddings.weight", ("V", "H"), numerics, num_columns=1), INPUT_IDS, tokens),
        *norm,
        Row(name="pow", reads=(), writes=(SLOPES,)),
        Row(name="alibi", reads=(SLOPES,), writes=(biases,)),
        *mask_rows(facts.masks),
    ]
    return Section(
        name="embedding",
        rows=tuple(stamped(rows, Component.EMBEDDING, "transformer")),
        output=output,
        held=(tokens, SLOPES, biases, *facts.masks),
        leaves=(tokens,),
    )


def bloom_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """BloomBlock with the residual stream beside its norms."""
    x, output = hidden_states(numerics), hidden_states(numerics, f"{NEXT}hidden_states")
    middle = hidden_states(numerics, "hidden_states after attention")
    norm_1, normed = layer_norm("input_layernorm", x, "input_layernorm output", ("H",), numerics)
    attending, weights = _attention(normed, x, middle, facts, numerics)
    norm_2, normed_2 = layer_norm(
        "post_attention_layernorm", middle, "post_attention_layernorm output", ("H",), numerics
    )
    rows = [
        *norm_1,
        *stamped(attending, Component.ATTENTION, "self_attention"),
        *norm_2,
        frame(normed),
        *stamped(_mlp(normed_2, middle, output, facts, numerics), Component.MLP, "mlp"),
        frame(x, middle, normed_2, weights),
    ]
    layer = Section(name="layer", rows=tuple(rows), input=x, output=output, returned=(weights,))
    return with_cache(layer, facts.core, numerics)


def _mlp(x: Tensor, residual: Tensor, output: Tensor, facts: LayerFacts, numerics: Numerics) -> list[Row]:
    """BloomMLP.forward, dropout_add."""
    up = Tensor("dense_h_to_4h output", ("B", "S", "F"), numerics.linear)
    activated = like(up, "activation output")
    down = Tensor("dense_4h_to_h output", ("B", "S", "H"), numerics.linear)
    dropping, added = dropped(down, "mlp output after dropout", on=facts.residual_dropout)
    return [
        *linear("mlp.dense_h_to_4h", x, up, ("H",), ("F",), numerics, bias=True),
        _gelu(up, activated),
        *linear("mlp.dense_4h_to_h", activated, down, ("F",), ("H",), numerics, bias=True),
        *dropping,
        add(residual, added, output),
        frame(activated, down),
    ]


def _gelu(x: Tensor, out: Tensor) -> Row:
    """GeLUFunction: keeps x alone; bloom_gelu_forward holds four tensors at most, bloom_gelu_back five, the result
    counted."""
    forward = tuple(like(x, f"{part_name} of x") for part_name in ("half", "share", "square"))
    backward = tuple(like(x, f"{part_name} in bloom_gelu_back") for part_name in ("tanh", "half", "slope", "square"))
    return replace(unary("GeLUFunction", x, out), temporaries=forward, backward_temporaries=backward)


def _attention(
    x: Tensor, residual: Tensor, output: Tensor, facts: LayerFacts, numerics: Numerics
) -> tuple[list[Row], Tensor]:
    """BloomAttention.forward: the rows, and the probabilities, which the layer returns."""
    fused = Tensor("query_key_value output", ("B", "S", *FUSED), numerics.linear)
    q, k, v = (Tensor(name, HEADS, numerics.linear) for name in "qkv")
    cache_rows, key, value = updated(k, v, facts.core.cache, numerics)
    core_rows, out, weights, held = _core(q, key, value, facts, numerics)
    projected = Tensor("dense output", ("B", "S", "H"), numerics.compute)
    dropping, added = dropped(projected, "attention output after dropout", on=facts.residual_dropout)
    rows = [
        *linear("self_attention.query_key_value", x, fused, ("H",), FUSED, numerics, bias=True),
        *(part(fused, (each,)) for each in (q, k, v)),
        *cache_rows,
        *stamped(core_rows, Component.ATTENTION, CORE_MODULE),
        *linear("self_attention.dense", out, projected, ("N", "D"), ("H",), numerics, bias=True),
        *dropping,
        add(residual, added, output),
        frame(fused, projected, out, *held),
    ]
    return rows, weights


def _core(
    q: Tensor, k: Tensor, v: Tensor, facts: LayerFacts, numerics: Numerics
) -> tuple[list[Row], Tensor, Tensor, tuple[Tensor, ...]]:
    """softmax(alibi + q·kᵀ/√d + mask)·v: the rows, the output, the probabilities, and what the frame goes on
    holding."""
    core, mask = facts.core, facts.core.mask(numerics)
    rows: list[Row] = []
    heads: list[Tensor] = []
    for each in (q, k, v):
        merging, together = merged(each, core.merges_heads_by_copy and (each is q or not core.cached_by_head))
        rows += merging
        heads.append(together)
    casts, (bias, query, key) = _lowered((alibi(numerics, cached=core.is_cached), *heads[:2]), "scores", numerics)
    scores = Tensor("scores", core.scores, numerics.compute)
    masked = like(scores, "scores masked", dtype=wider(scores.dtype, mask.dtype))
    product = matmul("baddbmm", query, key, scores, core.scores_product)
    unscaled = (
        replace(gradient, unreduced=like(gradient.of, f"∂{gradient.of.name} before its scale"))
        for gradient in product.gradients
    )
    rows += [
        *casts,
        replace(
            product,
            reads=(*product.reads, bias),
            gradients=tuple(unscaled),
            operator=SavedOperator.BADDBMM,
        ),
        add(scores, mask, masked, name="mask"),
    ]
    softmax_rows, weights = probabilities(masked, q.dtype, core, numerics)
    dropping, weights = dropped(weights, "attention weights after dropout", on=core.dropout)
    casts, (value, lower) = _lowered((heads[2], weights), "values", numerics)
    by_head, out = (Tensor(name, HEADS, numerics.compute) for name in ("attention by head", "attention output"))
    rows += [
        *softmax_rows,
        *dropping,
        *casts,
        matmul("values", lower, value, by_head, core.values_product(value)),
        copy(by_head, out, copies_gradient=core.merges_heads_by_copy) if core.parts_heads else view(by_head, out),
    ]
    return rows, out, weights, (*heads, scores, masked)


def _lowered(tensors: tuple[Tensor, ...], use: str, numerics: Numerics) -> tuple[list[Row], tuple[Tensor, ...]]:
    casts, lower = zip(*(autocast_input(tensor, numerics, use) for tensor in tensors), strict=True)
    return [row for rows in casts for row in rows], lower


PARTS = Parts(
    embeddings=bloom_embeddings,
    layer=bloom_layer,
    end=End(embedding_weight="word_embeddings.weight", final_norm="ln_f", layers="transformer.h"),
)
