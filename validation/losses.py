"""Losses that make no logits: the model's head and loss as one call, in the place transformers has for them.

`F.linear_cross_entropy` is torch 2.13.0's; the other is liger_kernel 0.8.5's, called as its `lce_forward` does.
Imports nothing of calc, as validation.models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutputWithPast

IGNORED = -100
"""The label that counts nothing; transformers puts it behind the last token."""

LinearLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""The mean loss of hidden states [tokens, hidden], the head's weight and labels [tokens]."""


def chunked(hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Chunks and types as its options choose them by default."""
    options = torch.nn.LinearCrossEntropyOptions()
    return functional.linear_cross_entropy(hidden_states, weight, labels, options=options)


def liger(hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """LigerForCausalLMLoss, but for its shift of the labels."""
    fused = import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
    return fused(hidden_states, weight, labels)


LOSSES: dict[str, LinearLoss | None] = {
    "cross-entropy": None,
    "chunked-cross-entropy": chunked,
    "fused-linear-cross-entropy": liger,
}
"""None: the model's own."""


def with_loss(model: Any, loss: LinearLoss) -> None:
    """Lets `model` compute `loss` from its last hidden states."""
    model.forward = partial(_forward, model, loss)


def _forward(model: Any, loss: LinearLoss, *, labels: torch.Tensor, **inputs: Any) -> CausalLMOutputWithPast:
    """lce_forward in liger_kernel/transformers/model/llama.py, in training."""
    outputs = model.base_model(**inputs)
    hidden_states = outputs.last_hidden_state
    padded = functional.pad(labels, (0, 1), value=IGNORED)
    targets = padded[..., 1:].contiguous()
    flat = hidden_states.view(-1, hidden_states.shape[-1])
    lost = loss(flat, model.lm_head.weight, targets.view(-1))
    return CausalLMOutputWithPast(loss=lost, past_key_values=outputs.past_key_values)
