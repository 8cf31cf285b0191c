"""What decides which rows the parts of a model have, and the tensors that go from part to part."""

from dataclasses import dataclass

from calc.architecture import LayerKind, ModelKind
from calc.attention import AttentionCore
from calc.dtype import DType
from calc.ledger import Kind, Row, Tensor
from calc.losses import LinearLoss
from calc.operators import TOKENS, Numerics
from calc.sdpa import WINDOW_MASK


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """All that decides which rows a layer has; sizes are not among it."""

    kind: LayerKind
    residual_dropout: bool
    sliding: bool
    """Its mask is the sliding window's."""
    frozen: bool
    liger: bool
    """Its norms, MLP and rotary positions are Liger's."""
    core: AttentionCore


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """All that decides which rows embeddings and head have."""

    kind: ModelKind
    causal_mask: bool
    """Eager attention takes a mask that the model makes."""
    sliding_mask: bool
    """The same of the layers with a sliding window."""
    embedding_dropout: bool
    window_mask: bool = False
    """scaled_dot_product_attention takes a mask in the layers with a sliding window."""
    one_sequence: bool
    tied_embeddings: bool
    frozen_embedding: bool
    liger: bool
    """The final norm is Liger's."""
    linear_loss: LinearLoss | None = None
    """Head and loss in one call; None: logits and their cross-entropy."""


INPUT_IDS = Tensor("input_ids", TOKENS, DType.INT64, Kind.INPUTS)
COS = "rotary.cos"
SIN = "rotary.sin"


def hidden_states(numerics: Numerics, name: str = "hidden_states") -> Tensor:
    """The residual stream."""
    return Tensor(name, ("B", "S", "H"), numerics.weights)


def rotary_tables(numerics: Numerics) -> tuple[Tensor, Tensor]:
    """cos and sin of the positions, in the residual stream's type, one pair for the whole model."""
    return Tensor(COS, ("S", "D"), numerics.weights), Tensor(SIN, ("S", "D"), numerics.weights)


def attention_mask(numerics: Numerics, *, sliding: bool) -> Tensor:
    """The additive mask of eager attention, made once per forward for all layers of a kind."""
    return Tensor("sliding_mask" if sliding else "causal_mask", ("B", "S", "S"), numerics.weights)


def masks(facts: ModelFacts, numerics: Numerics) -> tuple[Tensor, ...]:
    """The masks the model makes, in their order."""
    exist = {False: facts.causal_mask, True: facts.sliding_mask}
    eager = tuple(attention_mask(numerics, sliding=sliding) for sliding in exist if exist[sliding])
    return (WINDOW_MASK,) if facts.window_mask else eager


def mask_rows(facts: ModelFacts, numerics: Numerics) -> list[Row]:
    """create_causal_mask, create_sliding_window_causal_mask."""
    allowed, causal = (Tensor(f"mask.{name}", ("S", "S"), DType.BOOL) for name in ("allowed", "causal"))
    temporaries = (allowed, causal) if facts.window_mask else (allowed,)
    return [Row(name=mask.name, reads=(), writes=(mask,), temporaries=temporaries) for mask in masks(facts, numerics)]
