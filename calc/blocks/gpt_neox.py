"""GPT-NeoX's layer (transformers 5.23.0, models/gpt_neox)."""

from functools import partial

from calc.attention import HEADS
from calc.cache import updated
from calc.kinds import PARTIAL_ROTARY
from calc.ledger import Component, Row, Section, Shape, Tensor
from calc.lifetimes import NEXT
from calc.norms import layer_norm
from calc.operators import Numerics, dropped, linear, stamped
from calc.primitives import add, frame, like, part, view, wider
from calc.rotary import rotary_tables, turned
from calc.wirings import Parts

from .attention import attention
from .embeddings import token_embeddings
from .facts import LayerFacts, hidden_states, with_cache
from .head import End
from .mlp import plain_mlp
from .positions import rotary_buffers

FUSED: Shape = ("B", "S", "N", 3, "D")


def gpt_neox_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """GPTNeoXLayer."""
    x, output = hidden_states(numerics), hidden_states(numerics, f"{NEXT}hidden_states")
    norm_1, normed = layer_norm("input_layernorm", x, "input_layernorm output", ("H",), numerics)
    attending, attended, held = _attention(normed, facts, numerics)
    drop_1, attended = dropped(attended, "attention output after dropout", on=facts.residual_dropout)
    sequential = not facts.kind.parallel
    middle = hidden_states(numerics, "hidden_states after attention") if sequential else x
    norm_2, normed_2 = layer_norm(
        "post_attention_layernorm", middle, "post_attention_layernorm output", ("H",), numerics
    )
    mlp, down = plain_mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", normed_2, facts, numerics)
    drop_2, down = dropped(down, "mlp output after dropout", on=facts.residual_dropout)
    both = like(down, "mlp and attention output", dtype=wider(down.dtype, attended.dtype))
    rows = [
        *norm_1,
        *stamped([*attending, frame(normed), *drop_1], Component.ATTENTION, "attention"),
        *([add(attended, x, middle)] if sequential else []),
        *norm_2,
        *stamped([*mlp, frame(normed_2), *drop_2], Component.MLP, "mlp"),
        *([add(down, middle, output)] if sequential else [add(down, attended, both), add(both, x, output)]),
        frame(x, middle, *(() if sequential else (attended,)), down, *held),
    ]
    layer = Section(name="layer", rows=tuple(rows), input=x, output=output, modules=MODULES)
    return with_cache(layer, facts.core, numerics)


MODULES = (
    "input_layernorm",
    "post_attention_layernorm",
    "attention.query_key_value",
    "attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
)


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """GPTNeoXAttention.forward: q, k and v of a head lie side by side in one projection."""
    bias = facts.kind.query_key_value_bias
    fused = Tensor("query_key_value output", FUSED, numerics.linear)
    by_head = like(fused, "qkv")
    q, k, v = (Tensor(name, HEADS, numerics.linear) for name in "qkv")
    made = rotary_tables(PARTIAL_ROTARY, numerics, sliding=False)
    turning, (turned_q, turned_k), _ = turned(q, k, made, PARTIAL_ROTARY)
    cache_rows, turned_k, v_seen = updated(turned_k, v, facts.core.cache, numerics)
    core_rows, out, held = attention(turned_q, turned_k, v_seen, facts, numerics)
    projected = Tensor("dense output", ("B", "S", "H"), numerics.compute)
    rows = [
        *linear("attention.query_key_value", x, fused, ("H",), FUSED[2:], numerics, bias=bias),
        view(fused, by_head, copies_gradient=not facts.core.one_head),
        part(by_head, (q, k, v)),
        *turning,
        *cache_rows,
        *core_rows,
        *linear("attention.dense", out, projected, ("N", "D"), ("H",), numerics, bias=facts.kind.output_bias),
        frame(by_head, turned_q, turned_k),
    ]
    return rows, projected, held


END = End(embedding_weight="embed_in.weight", final_norm="final_layer_norm", layers="gpt_neox.layers")

PARTS = Parts(
    embeddings=partial(token_embeddings, END.embedding_weight, "gpt_neox"),
    layer=gpt_neox_layer,
    end=END,
    buffers=rotary_buffers,
)
