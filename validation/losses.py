"""Losses that make no logits: the model's head and loss as one call, in the place transformers has for them.

`F.linear_cross_entropy` is torch 2.13.0's; the other is liger_kernel 0.8.5's, called as its `lce_forward` does.
Imports nothing of calc, as validation.models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional
from transformers.loss import loss_utils
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


Z_LOSS_MULTIPLIER = 1e-4


def with_z_loss(model: Any) -> None:
    """Lets `model` add OLMo's z-loss to its cross-entropy."""
    model.loss_function = causal_loss_with_z_loss


def causal_loss_with_z_loss(*args: Any, **kwargs: Any) -> torch.Tensor:
    """ForCausalLMLoss with cross_entropy_loss of olmo/train.py (OLMo, compute_z_loss) in its place."""
    with patch.object(loss_utils, "fixed_cross_entropy", cross_entropy_and_z_loss):
        return loss_utils.ForCausalLMLoss(*args, **kwargs)


def cross_entropy_and_z_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items: None = None, ignore_index: int = IGNORED, **_: Any
) -> torch.Tensor:
    """Their sum, as its caller has it."""
    loss = functional.cross_entropy(logits, labels, ignore_index=ignore_index)
    z_squared = logits.logsumexp(-1).pow(2)
    z_squared = (z_squared * (labels != ignore_index)).mean()
    z_loss = Z_LOSS_MULTIPLIER * z_squared
    return loss + z_loss


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
