"""What decides which rows the parts of a model have, and the tensors that go from part to part."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from calc.attention import SLIDING_MASK, AttentionCore
from calc.contexts import CacheEnd
from calc.dtype import DType
from calc.kinds import LayerKind, ModelKind
from calc.ledger import Kind, Row, Section, Tensor
from calc.losses import LinearLoss
from calc.operators import TOKENS, Numerics
from calc.scenario import ProblemType


class LayerFacts(NamedTuple):
    """All that decides which rows a layer has; sizes are not among it."""

    kind: LayerKind
    residual_dropout: bool
    mlp_dropout: bool
    frozen: bool
    liger: bool
    """Its norms, MLP and rotary positions are Liger's."""
    core: AttentionCore
    num_hit: int = 0
    """Experts that get tokens, which run in a loop; 0: they run together, or there are none."""
    copies_experts: bool = False
    """Each token gets a copy of its experts' weights."""
    cross: AttentionCore | None = None
    """Of the attention to the encoder's output."""
    kept_modules: frozenset[str] = frozenset()
    """Of a quantised model: linear modules whose weights are as they are."""
    weight_types: tuple[tuple[str, DType], ...] = ()
    """Of a model in several types: that of each matrix, by name."""


class ModelFacts(NamedTuple):
    """All that decides which rows embeddings and head have."""

    kind: ModelKind
    masks: tuple[Tensor, ...]
    """What attention takes to tell who sees whom, in the order in which the model makes them."""
    layer_windows: tuple[bool, ...]
    """Whether there are layers without a sliding window (False), with one (True), or both."""
    embedding_dropout: bool
    classifier_dropout: bool
    one_sequence: bool
    tied_embeddings: bool
    frozen_embedding: bool
    liger: bool
    """The final norm is Liger's."""
    problem: ProblemType | None = None
    """What the labels of a classification head are; none: a language-model head."""
    names_problem: bool = False
    """The config or the scenario says so; else it follows from the number of labels."""
    linear_loss: LinearLoss | None = None
    """Head and loss in one call; None: logits and their cross-entropy."""
    z_loss: bool = False
    """The squared logarithm of the softmax's sum is added to the loss."""
    cache_end: CacheEnd = CacheEnd.FORWARD
    router_loss: bool = False
    """Something is added to the loss for the routers of a mixture's layers."""
    generates: bool = False
    """Logits are made, of each sequence's last token where nothing else is said, and no loss."""
    keeps_all_logits: bool = False
    """They are made of all tokens."""


INPUT_IDS = Tensor("input_ids", TOKENS, DType.INT64, Kind.INPUTS)
DECODER_INPUT_IDS = replace(INPUT_IDS, name="decoder_input_ids")
"""Of a generation; in training they are made of the labels."""


def hidden_states(numerics: Numerics, name: str = "hidden_states") -> Tensor:
    """The residual stream."""
    return Tensor(name, ("B", "S", "H"), numerics.weights)


def mask_rows(masks: Iterable[Tensor]) -> Iterator[Row]:
    """create_causal_mask, create_sliding_window_causal_mask: an additive mask comes of a boolean one, a window's of
    two."""
    for mask in masks:
        allowed, causal = (Tensor(f"mask.{name}", mask.shape[-2:], DType.BOOL) for name in ("allowed", "causal"))
        boolean = (allowed, causal) if mask.name == SLIDING_MASK else ()
        yield Row(
            name=mask.name, reads=(), writes=(mask,), temporaries=boolean if mask.dtype is DType.BOOL else (allowed,)
        )


def with_cache(layer: Section, core: AttentionCore, numerics: Numerics, cross: AttentionCore | None = None) -> Section:
    """`layer` with what a cache brings it and takes from it, where there is one; `cross`: of its attention to the
    encoder's output."""
    if not core.is_cached:
        return layer
    of_cross = cross.cache.held(numerics) if cross is not None else ()
    return replace(layer, lent=core.cache.lent(numerics), cached=(*core.cache.held(numerics), *of_cross))
