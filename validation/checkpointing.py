"""What of a model is checkpointed, beside what transformers itself does: groups of layers, the attention core, and what
listed operators give (torch 2.13.0, transformers 5.23.0)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from calc.scenario import Scenario

ContextPair = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]

LINEAR_AND_FUSED_ATTENTION = (
    *("mm", "addmm", "_grouped_mm"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
)
"""The Scenario's default for `recompute_saved_operators`; a test holds them equal."""


class Both(AbstractContextManager):
    """Two contexts as one; like torch's own it lives as long as its region."""

    def __init__(self, outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> None:
        self.outer, self.inner = outer, inner

    def __enter__(self) -> None:
        self.outer.__enter__()
        self.inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)
        self.outer.__exit__(*error)


def contexts(scenario: Scenario, given: ContextPair) -> ContextPair:
    """The contexts of a checkpointed region, beside those `given`."""
    if scenario.recompute != "operators":
        return given
    return partial(keeping, saved_operators(scenario), given)


def keeping(operators: list[Any], given: ContextPair) -> tuple[Both, Both]:
    """The contexts of a checkpointed region that keeps what `operators` give."""
    pairs = zip(given(), create_selective_checkpoint_contexts(operators), strict=True)
    first, again = (Both(*pair) for pair in pairs)
    return first, again


def saved_operators(scenario: Scenario) -> list[Any]:
    """The overloads that a model's layers call."""
    names = scenario.recompute_saved_operators or LINEAR_AND_FUSED_ATTENTION
    return [getattr(torch.ops.aten, name).default for name in names]


class CheckpointedGroup(torch.nn.ModuleList):
    """Layers in a row that are one checkpointed region; the model calls it like one of them."""

    def __init__(self, layers: Iterable[torch.nn.Module], options: dict[str, Any]) -> None:
        super().__init__(layers)
        self.options = options

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(partial(self.in_a_row, **kwargs), hidden_states, *args, **self.options)

    def in_a_row(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        for layer in self:
            hidden_states = layer(hidden_states, *args, **kwargs)
        return hidden_states


def body(model: Any) -> torch.nn.Module:
    """What holds embeddings and layers."""
    decoder = model.get_decoder()
    if decoder is model:
        return model.model  # Llama 4's base_model_prefix is not its model's name
    return model.base_model if isinstance(decoder, torch.nn.Linear) else decoder  # ModernBERT's head is a decoder


def layers_of(model: Any) -> tuple[torch.nn.Module, str, torch.nn.ModuleList]:
    """The list of layers: the module that holds it, its name there, and itself."""
    return next(
        (owner, name, child)
        for owner in body(model).modules()
        for name, child in owner.named_children()
        if isinstance(child, torch.nn.ModuleList)
    )


def group_layers(model: Any, size: int, options: dict[str, Any]) -> None:
    """Put `size` layers in a row into one checkpointed group each; transformers has no such option."""
    owner, name, layers = layers_of(model)
    groups = (layers[start : start + size] for start in range(0, len(layers), size))
    setattr(owner, name, torch.nn.ModuleList(CheckpointedGroup(group, options) for group in groups))


def checkpointed(kernel: str, interval: int, options: dict[str, Any]) -> str:
    """Registers attention `kernel`, checkpointed in every `interval`-th layer; returns its name."""
    name = f"checkpointed_{kernel}_{interval}"

    def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        core = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager)
        if module.layer_idx % interval or not module.training:
            return core(module, query, key, value, attention_mask, **kwargs)
        return checkpoint(core, module, query, key, value, attention_mask, **options, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
    return name
