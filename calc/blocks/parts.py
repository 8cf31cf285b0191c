"""What the layers of several GPT-like families are put together from (transformers 5.23.0)."""

from calc.attention import AttentionCore
from calc.dtype import DType
from calc.ledger import Kind, Row, Tensor
from calc.operators import POSITION_IDS, Numerics, activation, linear, rotary
from calc.primitives import cat, dropout, like, part
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


def partial_rotary_tables(numerics: Numerics) -> tuple[Tensor, Tensor]:
    """cos and sin of the positions, for as many elements of a head as are turned."""
    return Tensor("rotary.cos", ("S", "Q"), numerics.weights), Tensor("rotary.sin", ("S", "Q"), numerics.weights)


def partial_tables_row(numerics: Numerics) -> Row:
    """GPTNeoXRotaryEmbedding.forward."""
    names = ("angles", "cos in fp32", "sin in fp32")
    temporaries = tuple(Tensor(f"rotary.{name}", ("S", "Q"), DType.FP32) for name in names)
    return Row(
        name="rotary_emb", reads=(POSITION_IDS,), writes=partial_rotary_tables(numerics), temporaries=temporaries
    )


PARTIAL_ROTARY_BUFFERS = tuple(
    Tensor(f"rotary_emb.{name}", ("Q/2",), DType.FP32, Kind.BUFFERS) for name in ("inv_freq", "original_inv_freq")
)


Pair = tuple[Tensor, Tensor]
"""One of q and one of k."""


def partly_turned(q: Tensor, k: Tensor, numerics: Numerics) -> tuple[list[Row], Pair, Pair]:
    """The first elements of each head turned, the others put behind them: the rows, the results, what was turned."""
    cos, sin = partial_rotary_tables(numerics)
    slices: list[Row] = []
    turning: list[Row] = []
    joining: list[Row] = []
    results: list[Tensor] = []
    fronts: list[Tensor] = []
    for x in (q, k):
        front, rest = (like(x, f"{x.name} {name}", shape=(*x.shape[:-1], dim)) for name, dim in HEAD_PARTS)
        rows, turned = rotary(x.name, front, cos, sin)
        result = like(x, f"{x.name} with positions and the rest", dtype=turned.dtype)
        slices += [part(x, (front,)), part(x, (rest,))]
        turning += rows
        joining.append(cat((turned, rest), result))
        results.append(result)
        fronts.append(turned)
    return [*slices, *turning, *joining], (results[0], results[1]), (fronts[0], fronts[1])


HEAD_PARTS = (("to turn", "Q"), ("to leave", "D-Q"))
