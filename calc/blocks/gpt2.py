"""GPT-2's embeddings and layer (transformers 5.23.0, models/gpt2)."""

from collections.abc import Callable
from dataclasses import replace

from calc.attention import HEADS
from calc.cache import updated
from calc.ledger import Component, Row, Section, Tensor
from calc.lifetimes import NEXT
from calc.norms import layer_norm
from calc.operators import POSITION_IDS, Numerics, dropped, embedding, linear, parameter, stamped
from calc.primitives import add, dropout, frame, part, view
from calc.scenario import Attention
from calc.wirings import Parts

from .attention import attention
from .facts import INPUT_IDS, LayerFacts, ModelFacts, hidden_states, mask_rows, with_cache
from .head import End
from .mlp import plain_mlp


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
        *mask_rows(facts.masks),
    ]
    if facts.embedding_dropout:
        rows.append(dropout(total, output))
    held = (tokens, POSITION_IDS, positions, *facts.masks)
    return Section(
        name="embedding",
        rows=tuple(stamped(rows, Component.EMBEDDING, "transformer")),
        output=output,
        held=held,
        leaves=(tokens,),
    )


AttentionRows = Callable[[Tensor, LayerFacts, Numerics], tuple[list[Row], Tensor, tuple[Tensor, ...]]]
"""Of the norm's output, the facts and the types: the rows, the output, and what the layer's frame goes on holding."""


def gpt2_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """GPT2Block."""
    mask = (facts.core.mask(numerics),) if facts.core.kernel is Attention.EAGER else ()
    return replace(gpt2_like_layer(_gpt2_attention, facts, numerics, conv1d=True), arguments=mask)


def gpt2_like_layer(attending: AttentionRows, facts: LayerFacts, numerics: Numerics, *, conv1d: bool) -> Section:
    """Norms before attention and MLP, whose frame holds what each adds to the residual stream."""
    x = hidden_states(numerics)
    middle, output = (
        hidden_states(numerics, "hidden_states after attention"),
        hidden_states(numerics, f"{NEXT}hidden_states"),
    )
    norm_1, normed = layer_norm("ln_1", x, "ln_1 output", ("H",), numerics)
    attended_rows, attended, held = attending(normed, facts, numerics)
    norm_2, normed_2 = layer_norm("ln_2", middle, "ln_2 output", ("H",), numerics)
    mlp, projected = plain_mlp("mlp.c_fc", "mlp.c_proj", normed_2, facts, numerics, conv1d=conv1d)
    drop_2, projected = dropped(projected, "mlp output", on=facts.residual_dropout)
    rows = [
        *norm_1,
        *stamped(attended_rows, Component.ATTENTION, "attn"),
        add(attended, x, middle),
        frame(normed),
        *norm_2,
        *stamped([*mlp, *drop_2], Component.MLP, "mlp"),
        add(middle, projected, output),
        frame(x, middle, attended, normed_2, projected, *held),
    ]
    returned = held if facts.kind.returns_weights else ()
    layer = Section(name="layer", rows=tuple(rows), input=x, output=output, returned=returned)
    return with_cache(layer, facts.core, numerics)


def _gpt2_attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """GPT2Attention.forward."""
    core = facts.core
    fused = Tensor("qkv", ("B", "S", 3, "N", "D"), numerics.linear)
    parts = tuple(Tensor(f"{name} part", ("B", "S", "N", "D"), numerics.linear) for name in "qkv")
    q, k, v = (Tensor(name, HEADS, numerics.linear) for name in "qkv")
    rows = linear("attn.c_attn", x, fused, ("H",), (3, "N", "D"), numerics, bias=True, conv1d=True)
    rows.append(part(fused, parts))
    # k's gradient, from a transposed product, can be seen as [B, S, H] at once; padding ends that.
    copies = core.gradients_by_head and not core.one_head
    copies_k = core.pads_heads and not core.one_head
    rows += [
        view(parts[1], k, copies_gradient=copies_k),
        view(parts[2], v, copies_gradient=copies),
        view(parts[0], q, copies_gradient=copies),
    ]
    cache_rows, k, v = updated(k, v, core.cache, numerics)
    rows += cache_rows
    attention_rows, out, held = attention(q, k, v, facts, numerics)
    projected = Tensor("c_proj output", ("B", "S", "H"), numerics.compute)
    rows += attention_rows
    rows += linear("attn.c_proj", out, projected, ("N", "D"), ("H",), numerics, bias=True, conv1d=True)
    dropping, projected = dropped(projected, "attn output", on=facts.residual_dropout)
    return [*rows, *dropping, frame(fused, q, k, v)], projected, held


GPT2_END = End(embedding_weight="wte.weight", final_norm="ln_f", layers="transformer.h")

PARTS = Parts(embeddings=gpt2_embeddings, layer=gpt2_layer, end=GPT2_END)
