"""Phi's layer (transformers 5.23.0, models/phi)."""

from functools import partial

from calc.attention import HEADS, KEY_VALUE_HEADS
from calc.cache import updated
from calc.kinds import PHI_ROTARY
from calc.ledger import Component, Row, Section, Tensor
from calc.lifetimes import NEXT
from calc.norms import layer_norm
from calc.operators import Numerics, dropped, linear, stamped
from calc.primitives import add, frame, like, view, wider
from calc.rotary import rotary_tables, turned
from calc.wirings import Parts

from .attention import attention
from .embeddings import token_embeddings
from .facts import LayerFacts, hidden_states, with_cache
from .head import End
from .mlp import plain_mlp
from .positions import rotary_buffers


def phi_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """PhiDecoderLayer."""
    x, output = hidden_states(numerics), hidden_states(numerics, f"{NEXT}hidden_states")
    norm, normed = layer_norm("input_layernorm", x, "input_layernorm output", ("H",), numerics)
    attending, attended, held = _attention(normed, facts, numerics)
    drop_1, attended = dropped(attended, "attention output after dropout", on=facts.residual_dropout)
    mlp, down = plain_mlp("mlp.fc1", "mlp.fc2", normed, facts, numerics)
    drop_2, down = dropped(down, "mlp output after dropout", on=facts.residual_dropout)
    both = like(down, "attention and mlp output", dtype=wider(down.dtype, attended.dtype))
    rows = [
        *norm,
        *stamped([*attending, *drop_1], Component.ATTENTION, "self_attn"),
        *stamped([*mlp, *drop_2], Component.MLP, "mlp"),
        add(attended, down, both),
        add(both, x, output),
        frame(x, normed, attended, down, *held),
    ]
    layer = Section(name="layer", rows=tuple(rows), input=x, output=output, modules=MODULES)
    return with_cache(layer, facts.core, numerics)


MODULES = (
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "dense")),
    "mlp.fc1",
    "mlp.fc2",
    "input_layernorm",
)


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """PhiAttention.forward: its frame holds the parts of q and k, too."""
    core, kind = facts.core, facts.kind
    projections = (
        ("q", HEADS, not core.one_head),
        ("k", KEY_VALUE_HEADS, not core.one_key_value_head),
        ("v", KEY_VALUE_HEADS, core.gradients_by_head and not core.one_key_value_head),
    )
    rows: list[Row] = []
    heads: list[Tensor] = []
    for name, shape, copies in projections:
        flat, head = (Tensor(each, shape, numerics.linear) for each in (f"{name}_proj output", name))
        bias = kind.query_key_value_bias
        rows += linear(f"self_attn.{name}_proj", x, flat, ("H",), shape[2:], numerics, bias=bias)
        rows.append(view(flat, head, copies_gradient=copies))
        heads.append(head)
    q, k, v = heads
    made = rotary_tables(PHI_ROTARY, numerics, sliding=False)
    turning, (turned_q, turned_k), fronts = turned(q, k, made, PHI_ROTARY)
    cache_rows, key, v = updated(turned_k, v, core.cache, numerics)
    core_rows, out, held = attention(turned_q, key, v, facts, numerics)
    projected = Tensor("dense output", ("B", "S", "H"), numerics.compute)
    rows += [
        *turning,
        *cache_rows,
        *core_rows,
        *linear("self_attn.dense", out, projected, ("N", "D"), ("H",), numerics, bias=kind.output_bias),
        frame(q, k, turned_q, key, v, *fronts),
    ]
    return rows, projected, held


END = End(embedding_weight="embed_tokens.weight", final_norm="final_layernorm")

PARTS = Parts(
    embeddings=partial(token_embeddings, END.embedding_weight, "model", holds_dropped=True),
    layer=phi_layer,
    end=END,
    buffers=rotary_buffers,
)
