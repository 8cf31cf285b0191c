"""The rotary tables a model makes for its layers, and the buffers they come from."""

from calc.dtype import DType
from calc.kinds import PositionTables, Rotary
from calc.ledger import Kind, Tensor
from calc.operators import Numerics
from calc.rotary import Tables, rotary_tables, turned_dim

from .facts import ModelFacts


def made_tables(facts: ModelFacts, numerics: Numerics) -> list[Tables]:
    """cos and sin, once or for each kind of layer."""
    return [rotary_tables(rotary, numerics, sliding=sliding) for rotary, sliding in _kinds(facts)]


def rotary_buffers(facts: ModelFacts) -> list[Tensor]:
    """Of the module rotary_emb."""
    buffers: list[Tensor] = []
    for rotary, sliding in _kinds(facts):
        of = "sliding." if sliding else ""
        for name in ("inv_freq", "original_inv_freq"):
            buffers.append(Tensor(f"rotary_emb.{of}{name}", (turned_dim(rotary)[1],), DType.FP32, Kind.BUFFERS))
    return buffers


def _kinds(facts: ModelFacts) -> list[tuple[Rotary, bool]]:
    """The rotary tables there are: of which positions, and whether for layers with a sliding window."""
    rotary = facts.kind.rotary
    if rotary is None:
        return []
    by_window = rotary.tables is PositionTables.BY_WINDOW
    return [(rotary, sliding) for sliding in (facts.layer_windows if by_window else (False,))]
