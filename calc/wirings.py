"""What each wiring is made of: `PARTS` of the module in blocks/ that has its name, loaded when first asked for."""

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import NamedTuple

from .blocks.facts import LayerFacts, ModelFacts
from .blocks.head import End, head
from .kinds import Wiring
from .ledger import Section, Tensor
from .operators import Numerics


class Parts(NamedTuple):
    """The functions that write down a model's parts, and what belongs to none of them."""

    embeddings: Callable[[ModelFacts, Numerics], Section]
    layer: Callable[[LayerFacts, Numerics], Section]
    end: End
    head: Callable[[ModelFacts, End, Numerics, tuple[Tensor, ...]], Section] = head
    """Also of what the model's own frame holds until its last layer has returned."""
    bridge: Callable[[ModelFacts, Numerics, tuple[Tensor, ...]], Section] | None = None
    """Of an encoder-decoder the end of the encoder and the decoder's embeddings; also of what the encoder's own frame
    holds until its last layer has returned. What it offers is the encoder's output."""
    decoder_embeddings: Callable[[ModelFacts, Numerics], Section] | None = None
    """Of an encoder-decoder's pass over one more token, which the encoder takes no part in."""
    buffers: Callable[[ModelFacts], Iterable[Tensor]] = lambda facts: ()
    """What the model owns that no part of it reads."""


@cache
def parts_of(wiring: Wiring) -> Parts:
    """What a model of this wiring is made of."""
    return import_module(f".blocks.{wiring}", __package__).PARTS
