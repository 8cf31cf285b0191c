"""bitsandbytes' int8 linear and PEFT's LoRA on it, after their source: an emulation, for machines without a GPU.

What is here makes the tensors that MatMul8bitLt (bitsandbytes 0.50.2, autograd/_functions.py, has_fp16_weights=False),
int8_vectorwise_quant and int8_mm_dequant (backends/cuda/ops.py), int8_mixed_scaled_mm and int8_scaled_mm
(backends/default/ops.py) and Linear8bitLt (peft/tuners/lora/bnb.py) make for inputs without outliers; it computes
nothing. Left out: the fp32 product for widths that are no multiple of 4.
"""

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from validation.emulated_4bit import LoraLinear4bit, replace_linears

THRESHOLD = 6.0
"""transformers' llm_int8_threshold."""
LARGEST_CODE = 127.0


class MatMul8bitLt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        codes, _scales = vectorwise_quant(rows.to(torch.float16))
        out = scaled_mm(codes, layer, rows.dtype)
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, rows.dtype
        if ctx.needs_input_grad[0]:
            ctx.rows = rows  # ctx.tensors, which backward unpacks and does not read
        return out.reshape(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1]).contiguous()
        weight = ctx.layer.weight.to(ctx.dtype, copy=True)
        weight.mul_(ctx.layer.scales.unsqueeze(1).mul(1.0 / LARGEST_CODE))
        return torch.matmul(grad.to(ctx.dtype), weight).view(ctx.shape), None


def vectorwise_quant(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = torch.empty(rows.shape[0], dtype=torch.float32)
    codes = torch.empty(rows.shape, dtype=torch.int8)
    outliers = rows.abs() >= THRESHOLD
    del outliers
    return codes, scales


def scaled_mm(codes: torch.Tensor, layer: Any, dtype: torch.dtype) -> torch.Tensor:
    product = torch.ops.aten._int_mm(codes, layer.weight.t())
    out = torch.empty_like(product, dtype=torch.float16)
    if layer.bias is not None and layer.bias.dtype is not torch.float16:
        out.add_(layer.bias)
    return out.to(dtype)


class Linear8bitLt(torch.nn.Module):
    def __init__(self, of: torch.nn.Module) -> None:
        super().__init__()
        weight = of.weight.T if isinstance(of, Conv1D) else of.weight
        assert isinstance(weight, torch.Tensor)
        self.out_features, self.in_features = weight.shape
        self.weight = torch.nn.Parameter(torch.empty(weight.shape, dtype=torch.int8), requires_grad=False)
        bias = of.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)
        self.register_buffer("scales", torch.empty(self.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bias is not None and self.bias.dtype != x.dtype:
            self.bias.data = self.bias.data.to(x.dtype)
        return MatMul8bitLt.apply(x, self)  # pyright: ignore


class LoraLinear8bit(LoraLinear4bit):
    """PEFT's module, which does not copy what the base gives."""

    copies_result = False


def quantise(model: Any) -> None:
    """Put every linear of `model` into int8."""
    replace_linears(model, Linear8bitLt, LoraLinear8bit)
