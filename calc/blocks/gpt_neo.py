"""GPT-Neo's layer: GPT-2's with its attention written out (transformers 5.23.0, models/gpt_neo)."""

from calc.attention import HEADS
from calc.cache import updated
from calc.ledger import Row, Section, Tensor
from calc.operators import Numerics, dropped, linear
from calc.primitives import frame, view
from calc.wirings import Parts

from .attention import copies_key_gradient
from .facts import LayerFacts
from .gpt2 import GPT2_END, gpt2_embeddings, gpt2_like_layer
from .written_out import written_out_attention


def gpt_neo_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """GPTNeoBlock."""
    return gpt2_like_layer(_attention, facts, numerics, conv1d=False)


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """GPTNeoSelfAttention.forward."""
    core = facts.core
    copies = {"q": not core.one_head, "k": copies_key_gradient(core), "v": not core.one_head}
    projecting: list[Row] = []
    splitting: list[Row] = []
    heads: list[Tensor] = []
    for name in "qkv":
        flat, head = (Tensor(each, HEADS, numerics.linear) for each in (f"{name}_proj output", name))
        projecting += linear(f"attn.attention.{name}_proj", x, flat, ("H",), ("N", "D"), numerics)
        splitting.append(view(flat, head, copies_gradient=copies[name]))
        heads.append(head)
    q, k, v = heads
    cache_rows, key, value = updated(k, v, core.cache, numerics)
    core_rows, out, weights = written_out_attention(q, key, value, facts, numerics)
    projected = Tensor("out_proj output", ("B", "S", "H"), numerics.compute)
    name = "attn.attention.out_proj"
    dropping, result = dropped(projected, "attn output", on=facts.residual_dropout)
    rows = [
        *projecting,
        *splitting,
        *cache_rows,
        *core_rows,
        *linear(name, out, projected, ("N", "D"), ("H",), numerics, bias=True),
        *dropping,
        frame(q, key, value),
    ]
    return rows, result, (weights,)


PARTS = Parts(embeddings=gpt2_embeddings, layer=gpt_neo_layer, end=GPT2_END)
