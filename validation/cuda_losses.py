"""Losses without logits as CUDA computes them, on fake CPU tensors.

torch's is its own code, told that its tensors are on a GPU. Liger's is an emulation: its Triton kernels cannot run
without one, so its function is written again here, kernel calls left out, allocations and products kept.
"""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.modules import linear_cross_entropy
from torch.nn.modules.linear_cross_entropy import _ChunkContext, _linear_cross_entropy_batch_chunked_accumulator

from validation import losses

CHUNKED_LOSS = torch.ops.torch_nn._linear_cross_entropy_batch_chunked.default
ALLOW_RETAIN_GRAPH = 11
"""Which argument of the operator its body does not take."""
DEVICE_TEST = 'device.type == "cuda"'


def chunked_loss(*args: Any) -> tuple[torch.Tensor, ...]:
    """The body of F.linear_cross_entropy's operator, which a mode sees as one call."""
    return _linear_cross_entropy_batch_chunked_accumulator(*args[:ALLOW_RETAIN_GRAPH], *args[ALLOW_RETAIN_GRAPH + 1 :])


def build_on_cuda() -> Any:
    """_ChunkContext.build, compiled again with its one test of the device come true."""
    source = textwrap.dedent(inspect.getsource(_ChunkContext.build))
    if source.count(DEVICE_TEST) != 1:
        raise LookupError(f"_ChunkContext.build tests no {DEVICE_TEST}")
    namespace: dict[str, Any] = {}
    exec(source.replace(DEVICE_TEST, "True"), dict(vars(linear_cross_entropy)), namespace)
    return namespace["build"]


@contextmanager
def losses_on_cuda() -> Iterator[None]:
    """F.linear_cross_entropy with the options of a GPU from compute capability 8.0 on, Liger's loss emulated."""
    options = torch.nn.LinearCrossEntropyOptions
    adjust = options._adjust

    def adjust_on_cuda(self: Any, *args: Any, device: torch.device, **kwargs: Any) -> Any:
        return adjust(self, *args, device=torch.device("cuda"), **kwargs)

    def accumulation_dtype(dtype: torch.dtype, _: torch.device) -> torch.dtype | None:
        return torch.float32 if dtype in (torch.float16, torch.bfloat16) else None

    with (
        patch.object(options, "_adjust", adjust_on_cuda),
        patch.object(options, "_resolve_auto_acc_dtype", staticmethod(accumulation_dtype)),
        patch.object(_ChunkContext, "build", build_on_cuda()),
        patch.dict(losses.LOSSES, {"fused-linear-cross-entropy": emulated_liger}),
    ):
        yield


def emulated_liger(hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return EmulatedLiger.apply(hidden_states, weight, labels)


class EmulatedLiger(torch.autograd.Function):
    """LigerFusedLinearCrossEntropyFunction (liger_kernel 0.8.5) from compute capability 8.0 on, reduction mean."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, hidden_states: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        num_tokens, hidden_size = hidden_states.shape
        chunk = chunk_size(num_tokens, weight.shape[0], hidden_size)
        grad_hidden = torch.zeros_like(hidden_states)
        grad_weight = torch.zeros_like(weight) if weight.requires_grad else None
        loss_by_token = torch.zeros(num_tokens, dtype=torch.float32)
        counted = target != losses.IGNORED
        counted.sum()
        autocast = torch.is_autocast_enabled("cpu")
        storage = None if autocast else torch.empty(chunk, weight.shape[0], dtype=hidden_states.dtype)
        for start in range(0, num_tokens, chunk):
            x = hidden_states[start : start + chunk]
            gradient = grad_hidden[start : start + chunk]
            if storage is not None:
                logits = storage[: len(x)]
                torch.mm(x, weight.t(), out=logits)
                torch.mm(logits, weight, out=gradient)
            else:
                logits = x @ weight.t()
                gradient.copy_(logits @ weight)
            if grad_weight is not None:
                add_product(grad_weight, logits, x)
            del logits, x, gradient
        del storage
        loss = loss_by_token.sum()
        ctx.save_for_backward(grad_hidden.detach(), grad_weight.detach() if grad_weight is not None else None)
        return loss

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        one = torch.ones_like(grad_outputs[0])
        (grad_outputs[0] == one).all()  # as torch.equal does; then a Triton kernel multiplies in place
        return *ctx.saved_tensors, None


def chunk_size(num_tokens: int, vocab_size: int, hidden_size: int) -> int:
    """triton.next_power_of_2(triton.cdiv(BT, triton.cdiv(V, H))), at most BT."""
    expansion = -(-vocab_size // hidden_size)
    share = 1
    while share * expansion < num_tokens:
        share *= 2
    return min(share, num_tokens)


def add_product(total: torch.Tensor, logits: torch.Tensor, x: torch.Tensor) -> None:
    """A chunk's share of the weight's gradient: into it where cuBLAS can (addmm with out_dtype), else apart."""
    if logits.dtype is torch.float32:
        total += torch.mm(logits.t(), x).float()
    elif total.dtype is torch.float32:
        torch.addmm(total, logits.t(), x.to(logits.dtype), out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, logits.t(), x, out=total)
