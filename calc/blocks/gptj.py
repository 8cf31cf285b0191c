"""GPT-J's layer (transformers 5.23.0, models/gptj)."""

from functools import partial

from calc.attention import HEADS
from calc.cache import updated
from calc.dtype import DType
from calc.ledger import Component, Kind, Row, Section, Shape, Tensor
from calc.lifetimes import NEXT
from calc.norms import layer_norm
from calc.operators import POSITION_IDS, Numerics, dropped, linear, stamped
from calc.primitives import add, cast, cat, copy, frame, like, multiply, part, scale, view, wider
from calc.wirings import Parts

from .embeddings import token_embeddings
from .facts import LayerFacts, hidden_states, with_cache
from .head import End
from .mlp import plain_mlp
from .written_out import written_out_attention

TABLE = Tensor("attn.embed_positions", ("P", "Q"), DType.FP32, Kind.BUFFERS)
"""Sine and cosine of all positions, in each layer."""
HEAD_PARTS = (("to turn", "Q"), ("to leave", "D-Q"))
Tables = tuple[Tensor, Tensor]


def gptj_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """GPTJBlock: attention and MLP read one norm's output."""
    x, output = hidden_states(numerics), hidden_states(numerics, f"{NEXT}hidden_states")
    norm, normed = layer_norm("ln_1", x, "ln_1 output", ("H",), numerics)
    attending, attended, weights = _attention(normed, facts, numerics)
    mlp, down = plain_mlp("mlp.fc_in", "mlp.fc_out", normed, facts, numerics)
    dropping, down = dropped(down, "mlp output", on=facts.residual_dropout)
    both = like(down, "attention and mlp output", dtype=wider(down.dtype, attended.dtype))
    rows = [
        *norm,
        *stamped(attending, Component.ATTENTION, "attn"),
        *stamped([*mlp, *dropping], Component.MLP, "mlp"),
        add(attended, down, both),
        add(both, x, output),
        frame(x, normed, attended, down, weights),
    ]
    layer = Section(name="layer", rows=tuple(rows), input=x, output=output, modules=MODULES, returned=(weights,))
    return with_cache(layer, facts.core, numerics)


MODULES = (
    "ln_1",
    *(f"attn.{name}_proj" for name in ("k", "v", "q", "out")),
    "mlp.fc_in",
    "mlp.fc_out",
)


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, Tensor]:
    """GPTJAttention.forward."""
    rows: list[Row] = []
    flats = {name: Tensor(f"{name}_proj output", HEADS, numerics.linear) for name in "qkv"}
    for name, flat in flats.items():
        rows += linear(f"attn.{name}_proj", x, flat, ("H",), ("N", "D"), numerics)
    v = like(flats["v"], "v")
    rows.append(view(flats["v"], v, copies_gradient=not facts.core.one_head))
    table_rows, tables, held_tables = _tables(numerics)
    turning, (k, q), fronts = _turned((flats["k"], flats["q"]), tables)
    cache_rows, k, v = updated(k, v, facts.core.cache, numerics)
    core_rows, out, weights = written_out_attention(q, k, v, facts, numerics)
    projected = Tensor("out_proj output", ("B", "S", "H"), numerics.compute)
    dropping, result = dropped(projected, "attn output", on=facts.residual_dropout)
    rows += [
        *table_rows,
        *turning,
        *cache_rows,
        *core_rows,
        *linear("attn.out_proj", out, projected, ("N", "D"), ("H",), numerics),
        *dropping,
        frame(q, k, v, flats["q"], flats["k"], *fronts, *held_tables),
    ]
    return rows, result, weights


def _tables(numerics: Numerics) -> tuple[list[Row], Tables, tuple[Tensor, ...]]:
    """sin and cos of the sequence's positions: the rows, both, and what the frame holds."""
    copied = Tensor("embed_positions copied", TABLE.shape, DType.FP32)
    positions = Tensor("position_ids repeated", ("S", "Q"), DType.INT64)
    gathered = Tensor("sin and cos in fp32", ("S", "Q"), DType.FP32)
    rounded = like(gathered, "sin and cos", dtype=numerics.linear)
    both = gathered if rounded.dtype is gathered.dtype else rounded
    sin, cos = (Tensor(name, ("S", "Q/2"), both.dtype) for name in ("sin", "cos"))
    rows = [
        Row(name="repeat", reads=(TABLE,), writes=(copied,)),
        Row(name="repeat", reads=(POSITION_IDS,), writes=(positions,)),
        Row(name="gather", reads=(copied, positions), writes=(gathered,)),
        *([] if both is gathered else [cast(gathered, rounded)]),
        part(both, (sin, cos)),
    ]
    return rows, (sin, cos), (copied, positions, both)


def _turned(heads: tuple[Tensor, Tensor], tables: Tables) -> tuple[list[Row], list[Tensor], list[Tensor]]:
    """The first elements of k's heads, then of q's, turned by pairs, and the others put behind them."""
    slices: list[Row] = []
    turning: list[Row] = []
    joining: list[Row] = []
    results: list[Tensor] = []
    fronts: list[Tensor] = []
    for x in heads:
        name = x.name[0]
        front, rest = (like(x, f"{name} {what}", shape=(*x.shape[:-1], dim)) for what, dim in HEAD_PARTS)
        rows, turned = _turned_by_pairs(name, front, tables)
        result = like(x, f"{name} with positions and the rest", dtype=turned.dtype)
        slices += [part(x, (front,)), part(x, (rest,))]
        turning += rows
        joining.append(cat((turned, rest), result))
        results.append(result)
        fronts.append(turned)
    return [*slices, *turning, *joining], results, fronts


PAIRED: Shape = ("S", "Q")


def _turned_by_pairs(name: str, x: Tensor, tables: Tables) -> tuple[list[Row], Tensor]:
    """apply_rotary_pos_emb: x·cos + rotate_every_two(x)·sin, with tables in which each element stands twice."""
    sin, cos = (Tensor(f"{table.name} of pairs for {name}", PAIRED, table.dtype) for table in tables)
    half: Shape = (*x.shape[:-1], "Q/2")
    even, odd, negated = (like(x, f"{name}.{which}", shape=half) for which in ("even", "odd", "negated"))
    rotated = like(x, f"{name}.rotated")
    straight, across, out = (like(x, each) for each in (f"{name}·cos", f"{name}.rotated·sin", f"{name} with positions"))
    rows = [
        copy(tables[0], sin, name="repeat_interleave"),
        copy(tables[1], cos, name="repeat_interleave"),
        multiply(x, cos, straight),
        part(x, (even,)),
        part(x, (odd,)),
        scale(odd, negated, name="neg"),
        cat((negated, even), rotated),
        multiply(rotated, sin, across),
        add(straight, across, out),
        frame(x, sin, cos),
    ]
    return rows, out


END = End(embedding_weight="wte.weight", final_norm="ln_f", layers="transformer.h")

PARTS = Parts(embeddings=partial(token_embeddings, END.embedding_weight, "transformer"), layer=gptj_layer, end=END)
