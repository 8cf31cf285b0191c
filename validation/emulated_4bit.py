"""bitsandbytes' 4-bit linear and PEFT's LoRA on it, after their source: an emulation, for machines without a GPU.

bitsandbytes 0.50.2 has no kernels for fake tensors, and PEFT's own module needs it to be imported. What is here makes
the tensors that MatMul4Bit (autograd/_functions.py), gemm_4bit's fallback (backends/cuda/ops.py), dequantize_4bit
(functional.py) and Linear4bit (peft/tuners/lora/bnb.py) make; it computes nothing.
"""

from collections.abc import Callable
from math import ceil, prod
from typing import Any

import torch
from peft.tuners.lora import Linear
from transformers.pytorch_utils import Conv1D

WEIGHTS_PER_SCALE, SCALES_PER_SCALE = 64, 256
FOUR_BIT_VALUES, EIGHT_BIT_VALUES = 16, 256


MOST_FUSED_ROWS = 4


def is_fused(x: torch.Tensor) -> bool:
    """One kernel multiplies with the packed weight, and none is written out."""
    return x.numel() // x.shape[-1] <= MOST_FUSED_ROWS and x.shape[-1] % WEIGHTS_PER_SCALE == 0


class MatMul4Bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, layer: Any) -> torch.Tensor:
        if is_fused(x):
            scales, weight = layer.scales, layer.unpacked
        else:
            if layer.double_quantisation:
                decoded = torch.empty_like(layer.scales, dtype=torch.float32)
                scales = decoded + layer.mean
            else:
                scales = layer.scales
            weight = torch.empty(layer.shape, dtype=x.dtype)
        with torch.enable_grad():  # by the grad mode the tracer tells a forward that runs again from a backward
            out = torch.nn.functional.linear(x.detach(), weight, layer.bias)
        del scales
        ctx.layer, ctx.packed = layer, packed
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        [grad] = grad_outputs
        return torch.matmul(grad, ctx.layer.written_out()), None, None


class Linear4bit(torch.nn.Module):
    def __init__(self, of: torch.nn.Module, double_quantisation: bool, compute_dtype: torch.dtype | None) -> None:
        super().__init__()
        weight = of.weight.T if isinstance(of, Conv1D) else of.weight
        assert isinstance(weight, torch.Tensor)
        self.shape, self.dtype = weight.shape, compute_dtype or weight.dtype
        self.double_quantisation = double_quantisation
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]
        self.unpacked = torch.empty(weight.shape, dtype=self.dtype)  # for a product's FLOPs; nobody counts it
        numel = prod(weight.shape)
        packed = torch.empty((numel + 1) // 2, 1, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        bias = of.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        self.bias = None if bias is None else torch.nn.Parameter(bias.to(self.dtype), requires_grad=False)
        num_scales = ceil(numel / WEIGHTS_PER_SCALE)
        self.register_buffer("code", torch.empty(FOUR_BIT_VALUES))
        self.register_buffer("scales", torch.empty(num_scales, dtype=torch.uint8 if double_quantisation else None))
        if double_quantisation:
            self.register_buffer("scales_of_scales", torch.empty(ceil(num_scales / SCALES_PER_SCALE)))
            self.register_buffer("scales_code", torch.empty(EIGHT_BIT_VALUES))
            self.register_buffer("mean", torch.empty(()))

    def written_out(self) -> torch.Tensor:
        """dequantize_4bit"""
        scales = self.scales
        if self.double_quantisation:
            assert isinstance(scales, torch.Tensor)
            assert isinstance(self.mean, torch.Tensor)
            scales = torch.empty_like(scales, dtype=torch.float32)
            scales += self.mean
        return torch.empty(self.shape, dtype=self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return MatMul4Bit.apply(x.to(self.dtype), self.weight, self).to(x.dtype)  # pyright: ignore


class LoraLinear4bit(Linear):
    """PEFT's module with the forward it has for bitsandbytes' linear."""

    copies_result = True

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = self.base_layer(x, *args, **kwargs)
        if self.copies_result:
            result = result.clone()
        [adapter] = self.active_adapters
        lora_a, lora_b, dropout = self.lora_A[adapter], self.lora_B[adapter], self.lora_dropout[adapter]
        requires_conversion = not torch.is_autocast_enabled("cpu")
        expected_dtype = result.dtype
        if requires_conversion:
            x = self._cast_input_dtype(x, lora_a.weight.dtype)  # pyright: ignore
        output = lora_b(lora_a(dropout(x))) * self.scaling[adapter]
        if requires_conversion:
            output = output.to(expected_dtype)
        return result + output


def quantise(model: Any, double_quantisation: bool, compute_dtype: torch.dtype | None) -> None:
    """Put every linear of `model` into 4 bits."""
    replace_linears(model, lambda linear: Linear4bit(linear, double_quantisation, compute_dtype), LoraLinear4bit)


def replace_linears(model: Any, quantised: Callable[[Any], torch.nn.Module], adapted: type[Linear]) -> None:
    """Every linear of `model` but the head, which transformers leaves out, by what is `quantised`; those with LoRA
    become `adapted`."""
    for path, module in list(model.named_modules()):
        for name, child in module.named_children():
            is_factor = isinstance(module, torch.nn.ModuleDict)
            is_head = "lm_head" in (name, *path.split("."))
            if isinstance(child, torch.nn.Linear | Conv1D) and not is_head and not is_factor:
                setattr(module, name, quantised(child))
                if isinstance(module, Linear):
                    module.__class__ = adapted
