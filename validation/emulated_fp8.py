"""transformers' fp8 linear on machines without a GPU: its own code around DeepGEMM, whose two functions allocate what
they return and compute nothing.

What runs is FP8Linear.forward, fp8_linear and deepgemm_fp8_fp4_linear of transformers 5.23.0, as on Hopper. Left out:
what DeepGEMM's cast makes on its way, and the copy of the scales that its product lays out for itself.
"""

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from transformers import FineGrainedFP8Config
from transformers.integrations import deepgemm, finegrained_fp8

INPUTS_PER_SCALE = 128


class Fp8Linear(finegrained_fp8.FP8Linear):
    """On a GPU of compute capability 9.0 where DeepGEMM is there."""

    unpacked: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        def cast(x: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
            scales = torch.empty(x.shape[0], -(-x.shape[1] // INPUTS_PER_SCALE), dtype=torch.float32)
            return torch.empty_like(x, dtype=torch.float8_e4m3fn), scales

        def matmul(_: Any, weight: Any, out: torch.Tensor, recipe: Any) -> None:
            torch.mm(input.reshape(-1, input.shape[-1]), self.unpacked.t(), out=out)  # for its FLOPs

        kernels = SimpleNamespace(per_token_cast_to_fp8=cast, fp8_fp4_matmul=matmul)
        with (
            patch.object(finegrained_fp8, "is_deepgemm_loadable", lambda: True),
            patch.object(finegrained_fp8, "is_sm100", lambda: False),
            patch.object(deepgemm, "is_sm100", lambda: False),
            patch.object(deepgemm, "load_deepgemm_kernel", lambda: kernels),
        ):
            return super().forward(input)


def quantise(model: Any) -> None:
    """Every linear of `model` but the head in fp8, by transformers' own rule. Scales are counted as buffers."""
    plain = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    finegrained_fp8.replace_with_fp8_linear(model, ["lm_head"], FineGrainedFP8Config())
    for name, module in list(model.named_modules()):
        if isinstance(module, finegrained_fp8.FP8Linear):
            weight, bias = plain[name].weight, plain[name].bias
            module.__class__ = Fp8Linear
            module.unpacked = torch.empty_like(weight)  # nobody counts it
            module.weight = torch.nn.Parameter(torch.empty_like(weight, dtype=torch.float8_e4m3fn), requires_grad=False)
            module.bias = bias
            scales = torch.empty(module.weight_scale_inv.shape)
            del module.weight_scale_inv
            module.register_buffer("weight_scale_inv", scales)
