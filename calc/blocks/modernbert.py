"""ModernBERT's embeddings and layer (transformers 5.23.0, models/modernbert)."""

from functools import partial

from calc.attention import HEADS, SLIDING_MASK
from calc.dtype import DType
from calc.ledger import Component, Row, Section, Tensor
from calc.lifetimes import NEXT
from calc.norms import NORMS
from calc.operators import POSITION_IDS, Numerics, activation, dropped, embedding, linear, parameter, stamped
from calc.primitives import add, frame, multiply, part
from calc.rotary import rotary_tables, tables_row, turned
from calc.wirings import Parts

from .attention import attention
from .encoder_head import MaskedLmHead, encoder_head
from .facts import INPUT_IDS, LayerFacts, ModelFacts, hidden_states, mask_rows
from .head import End
from .positions import made_tables, rotary_buffers

TOKENS_WEIGHT = "embeddings.tok_embeddings.weight"


def modernbert_embeddings(facts: ModelFacts, numerics: Numerics) -> Section:
    """ModernBertModel.forward up to its first layer: token embeddings, norm, dropout, masks, rotary tables."""
    tokens = hidden_states(numerics, "inputs_embeds")
    norm, normed = NORMS[facts.kind.norm]("embeddings.norm", tokens, "embeddings.norm output", ("H",), numerics)
    dropping, output = dropped(normed, "embeddings after dropout", on=facts.embedding_dropout)
    made = made_tables(facts, numerics)
    rows = [
        Row(name="arange", reads=(), writes=(POSITION_IDS,)),
        embedding(parameter(TOKENS_WEIGHT, ("V", "H"), numerics, num_columns=1), INPUT_IDS, tokens),
        *norm,
        *dropping,
        *(_distances() for mask in facts.masks if mask.name == SLIDING_MASK),
        *mask_rows(facts.masks),
        *map(tables_row, made),
    ]
    return Section(
        name="embedding",
        rows=tuple(stamped(rows, Component.EMBEDDING, "embeddings")),
        output=output,
        held=(output, POSITION_IDS, *(each for pair in made for each in pair), *facts.masks),
        leaves=(tokens,),
    )


def _distances() -> Row:
    """sliding_window_bidirectional_overlay: |query - key|, compared with the window."""
    apart, distance = (Tensor(name, ("S", "S"), DType.INT64) for name in ("query - key", "distance"))
    return Row(name="sub", reads=(), temporaries=(apart, distance))


def modernbert_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """ModernBertEncoderLayer; the first has no norm before its attention."""
    norms = facts.kind.norms
    x, middle, output = (
        hidden_states(numerics, name)
        for name in ("hidden_states", "hidden_states after attention", f"{NEXT}hidden_states")
    )
    norm_1, normed = _norm(norms.before_attention, x, facts, numerics)
    attending, attended, weights = _attention(normed, facts, numerics)
    norm_2, normed_2 = _norm(norms.before_mlp, middle, facts, numerics)
    expanding, down = _mlp(normed_2, facts, numerics)
    rows = [
        *norm_1,
        *stamped([*attending, frame(normed)], Component.ATTENTION, "attn"),
        add(x, attended, middle),
        *norm_2,
        *stamped([*expanding, frame(normed_2)], Component.MLP, "mlp"),
        add(middle, down, output),
        frame(x, middle, attended, *weights),
    ]
    return Section(name="layer", rows=tuple(rows), input=x, output=output, modules=MODULES)


MODULES = ("attn_norm", "attn.Wqkv", "attn.Wo", "mlp_norm", "mlp.Wi", "mlp.Wo")


def _norm(name: str | None, x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """The norm called `name`, where there is one."""
    if name is None:
        return [], x
    return NORMS[facts.kind.norm](name, x, f"{name} output", ("H",), numerics)


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """ModernBertAttention.forward."""
    core, kind = facts.core, facts.kind
    assert kind.rotary is not None
    fused = Tensor("Wqkv output", ("B", "S", 3, "N", "D"), numerics.linear)
    q, k, v = (Tensor(name, HEADS, numerics.linear) for name in "qkv")
    made = rotary_tables(kind.rotary, numerics, sliding=core.sliding)
    turning, (turned_q, turned_k), _ = turned(q, k, made, kind.rotary)
    core_rows, out, weights = attention(turned_q, turned_k, v, facts, numerics, positions=None)
    projected = Tensor("attn.Wo output", ("B", "S", "H"), numerics.compute)
    dropping, result = dropped(projected, "attention output after dropout", on=facts.residual_dropout)
    rows = [
        *linear("attn.Wqkv", x, fused, ("H",), (3, "N", "D"), numerics, bias=kind.query_key_value_bias),
        part(fused, (q, k, v)),
        *turning,
        *core_rows,
        *linear("attn.Wo", out, projected, ("N", "D"), ("H",), numerics, bias=kind.output_bias),
        *dropping,
        frame(out, fused, turned_q, turned_k),
    ]
    return rows, result, weights


def _mlp(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """ModernBertMLP.forward: Wo(dropout(act(input) · gate))."""
    bias = facts.kind.mlp_bias
    both = Tensor("mlp.Wi output", ("B", "S", 2, "F"), numerics.linear)
    given, gate, product = (Tensor(name, ("B", "S", "F"), numerics.linear) for name in ("input", "gate", "gated"))
    act, activated = activation(facts.kind.activation, given, "activation output", numerics)
    dropping, kept = dropped(product, "gated after dropout", on=facts.mlp_dropout)
    down = Tensor("mlp.Wo output", ("B", "S", "H"), numerics.linear)
    rows = [
        *linear("mlp.Wi", x, both, ("H",), (2, "F"), numerics, bias=bias),
        part(both, (given, gate)),
        *act,
        multiply(activated, gate, product),
        *dropping,
        *linear("mlp.Wo", kept, down, ("F",), ("H",), numerics, bias=bias),
        frame(both),
    ]
    return rows, down


PARTS = Parts(
    embeddings=modernbert_embeddings,
    layer=modernbert_layer,
    end=End(embedding_weight=TOKENS_WEIGHT, final_norm="final_norm"),
    head=partial(
        encoder_head,
        MaskedLmHead(dense="head.dense", norm="head.norm", decoder="decoder", dense_bias=False, loss_in_fp32=True),
        None,
    ),
    buffers=rotary_buffers,
)
