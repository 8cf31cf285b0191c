"""The attention core of a layer, by the kernel its facts name."""

from calc.attention import AttentionCore, eager_attention
from calc.ledger import Component, Row, Tensor
from calc.operators import CORE_MODULE, POSITION_IDS, Numerics, stamped
from calc.primitives import frame
from calc.scenario import Attention
from calc.sdpa import sdpa_attention

from .facts import LayerFacts


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    facts: LayerFacts,
    numerics: Numerics,
    positions: Tensor | None = POSITION_IDS,
) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """The attention core by the chosen kernel: its rows, its output, and what the layer's frame goes on holding.

    `positions` is what the model passes along, if it does; so a checkpoint's closure keeps it.
    """
    passed = [] if positions is None else [frame(positions)]
    rows, out, held = core_attention(q, k, v, facts.core, numerics)
    return stamped([*rows, *passed], Component.ATTENTION, CORE_MODULE), out, held


def core_attention(
    q: Tensor, k: Tensor, v: Tensor, core: AttentionCore, numerics: Numerics, bias: Tensor | None = None
) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """The same of one core, with a `bias` that is added to its scores."""
    if core.kernel is Attention.EAGER:
        rows, out, weights = eager_attention(q, k, v, core, numerics, bias)
        return stamped(rows, Component.ATTENTION, CORE_MODULE), out, (weights,)
    rows, out = sdpa_attention(q, k, v, core, numerics, bias)
    return stamped(rows, Component.ATTENTION, CORE_MODULE), out, ()


def copies_key_gradient(core: AttentionCore) -> bool:
    """The gradient of k's projection is copied: it comes from a transposed product, laid out as [B, N, D, S], of which
    the tokens of several sequences cannot be seen as one dimension; from padded heads as [B, N, S, D]."""
    if core.pads_heads:
        return not core.one_head
    return core.kernel in {Attention.EAGER, Attention.MATH} and not core.one_sequence
