"""Liger's kernels without Triton: autograd functions that allocate, keep and overwrite what Liger's do.

Written after liger_kernel 0.8.5, src/liger_kernel: ops/rms_norm.py, ops/swiglu.py, ops/rope.py, and the patches of
transformers/monkey_patch.py for a model that is there. Nothing is computed: shapes and types are right, values are
not. On a GPU RMSNorm's backward makes one row of weight gradients per multiprocessor; here one, as Liger
itself does outside of GPUs.
"""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

import torch
from torch.autograd import Function


class RMSNorm(Function):
    """LigerRMSNormFunction with casting_mode "llama" and in_place=True."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        rows = x.view(-1, x.shape[-1])
        out = torch.empty_like(rows)
        rstd = torch.empty(rows.shape[0], dtype=torch.float32, device=x.device)
        ctx.save_for_backward(rows, weight, rstd)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        _, weight, _ = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        rows = gradient.view(-1, gradient.shape[-1])
        if not ctx.needs_input_grad[1]:
            return rows.view(gradient.shape), None
        of_weight = torch.empty((1, rows.shape[-1]), dtype=torch.float32, device=weight.device)
        return rows.view(gradient.shape), of_weight.sum(dim=0).to(weight.dtype)


class SiLUMul(Function):
    """LigerSiLUMulFunction: the gradients lie where gate and up were."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        shape = gate.shape
        gate, up = (x.contiguous().view(-1, shape[-1]) for x in (gate, up))
        out = torch.empty_like(gate)
        ctx.save_for_backward(gate, up)
        return out.view(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        return gate.view(gradients[0].shape), up.view(gradients[0].shape)


class Rope(Function):
    """LigerRopeFunction: q and k, and their gradients, are turned where they lie once laid out by token."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        ctx.save_for_backward(cos.contiguous(), sin.contiguous())
        return by_token(q), by_token(k)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return *map(by_token, gradients), None, None


def by_token(heads: torch.Tensor) -> torch.Tensor:
    return heads.transpose(1, 2).contiguous().transpose(1, 2)


def rotary_positions(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
    return Rope.apply(q, k, cos, sin)


def rms_norm(module: Any, x: torch.Tensor) -> Any:
    return RMSNorm.apply(x, module.weight)


def gated_mlp(module: Any, x: torch.Tensor) -> Any:
    return module.down_proj(SiLUMul.apply(module.gate_proj(x), module.up_proj(x)))


def emulate(model: torch.nn.Module) -> None:
    """Patches the modules of `model`; of their functions only those of this model."""
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = MethodType(rms_norm, module)
        elif kind.endswith("MLP"):
            module.forward = MethodType(gated_mlp, module)
        elif kind.endswith("Attention"):
            module.forward = MethodType(with_rotary(type(module).forward), module)


def with_rotary(forward: Any) -> FunctionType:
    """A modelling file's `forward` that calls another `apply_rotary_pos_emb`."""
    names = forward.__globals__ | {"apply_rotary_pos_emb": rotary_positions}
    return FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
