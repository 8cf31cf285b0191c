"""What a model is made of, whoever wrote its configuration."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum


class Wiring(StrEnum):
    """How a layer's operations are put together."""

    GPT2 = "gpt2"
    LLAMA = "llama"
    MEGATRON = "megatron"
    """The fused GPT block of Megatron-LM, as the paper counts it."""


class Activation(StrEnum):
    """Activation functions, as transformers names them in ACT2FN."""

    GELU_NEW = "gelu_new"
    GELU = "gelu"
    GELU_PYTORCH_TANH = "gelu_pytorch_tanh"
    RELU = "relu"
    SILU = "silu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One transformer layer: its kind and its sizes."""

    wiring: Wiring
    activation: Activation
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    sliding_window: int | None = None
    query_key_value_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    """RMSNorm over each head's queries and keys."""
    frozen: bool = False
    """Its weights are not trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropouts:
    """Dropout probabilities."""

    embedding: float = 0.0
    attention: float = 0.0
    residual: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder-only language model: embeddings, runs of equal layers, final norm, head."""

    model_type: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    tied_embeddings: bool
    layers: tuple[tuple[Layer, int], ...]
    """Runs of equal layers, in order: (layer, how many)."""
    dropouts: Dropouts = Dropouts()
    always_makes_causal_mask: bool = False
    """Also where all its layers slide, and none reads it."""

    @property
    def num_layers(self) -> int:
        return sum(count for _, count in self.layers)

    @property
    def wiring(self) -> Wiring:
        return self.layers[0][0].wiring

    def with_frozen_layers(self, num_frozen: int) -> "Architecture":
        """The same with the first `num_frozen` layers' weights not trained."""
        return replace(self, layers=tuple(_frozen(self.layers, num_frozen))) if num_frozen else self


def _frozen(runs: tuple[tuple[Layer, int], ...], left: int) -> Iterator[tuple[Layer, int]]:
    for layer, count in runs:
        frozen = min(left, count)
        if frozen:
            yield replace(layer, frozen=True), frozen
        if count > frozen:
            yield layer, count - frozen
        left -= frozen
