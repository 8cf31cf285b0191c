"""What the layers of several GPT-like families are put together from (transformers 5.23.0)."""

from calc.attention import AttentionCore
from calc.ledger import Row, Tensor
from calc.operators import Numerics, activation, linear
from calc.primitives import dropout, like
from calc.scenario import Attention

from .facts import LayerFacts


def plain_mlp(
    up_name: str, down_name: str, x: Tensor, facts: LayerFacts, numerics: Numerics, *, conv1d: bool = False
) -> tuple[list[Row], Tensor]:
    """down(act(up(x)))."""
    bias = facts.kind.mlp_bias
    up = Tensor(f"{up_name} output", ("B", "S", "F"), numerics.linear)
    act, activated = activation(facts.kind.activation, up, "activation output", numerics)
    down = Tensor(f"{down_name} output", ("B", "S", "H"), numerics.linear)
    rows = [
        *linear(up_name, x, up, ("H",), ("F",), numerics, bias=bias, conv1d=conv1d),
        *act,
        *linear(down_name, activated, down, ("F",), ("H",), numerics, bias=bias, conv1d=conv1d),
    ]
    return rows, down


def dropped(x: Tensor, name: str, *, on: bool) -> tuple[list[Row], Tensor]:
    """nn.Dropout, which is nothing at probability 0."""
    if not on:
        return [], x
    out = like(x, name)
    return [dropout(x, out)], out


def copies_key_gradient(core: AttentionCore) -> bool:
    """The gradient of k's projection is copied: it comes from a transposed product, laid out as [B, N, D, S], of which
    the tokens of several sequences cannot be seen as one dimension; from padded heads as [B, N, S, D]."""
    if core.pads_heads:
        return not core.one_head
    return core.kernel in {Attention.EAGER, Attention.MATH} and not core.one_sequence
