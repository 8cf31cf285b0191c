"""transformers' QuantizedCache in groups, with emulated backends."""

from typing import Any

import torch
from transformers.cache_utils import QuantizedCache

from validation import emulated_hqq, emulated_quanto
from validation.emulated_hqq import EmulatedHqqLayer
from validation.emulated_quanto import EmulatedQuantoLayer

GROUPED = {**emulated_quanto.BITS, **emulated_hqq.BITS}
"""The bits of a number, by kv_cache_dtype."""
EMULATED = (EmulatedQuantoLayer, EmulatedHqqLayer)


def emulated_cache(config: Any, dtype: str) -> QuantizedCache:
    """QuantizedCache("quanto", config), or ("hqq", config), with numbers of that type."""
    cache: Any = QuantizedCache("fp8", config)  # which checks the model's layers, and needs no library
    layer = EmulatedHqqLayer if dtype in emulated_hqq.BITS else EmulatedQuantoLayer
    cache.layers = [layer(nbits=GROUPED[dtype]) for _ in cache.layers]
    return cache


def lengthen(layer: EmulatedQuantoLayer | EmulatedHqqLayer, num_tokens: int) -> None:
    """As after `num_tokens` more."""
    plain = layer._quantized_keys.shape, layer._quantized_values.shape
    dtype = layer._quantized_keys.scales.dtype
    residue = (layer.keys.shape[-2] if layer.keys.dim() > 1 else 0) + num_tokens
    joined = residue - residue % layer.residual_length
    if joined:
        layer._quantized_keys, layer._quantized_values = (
            layer._quantize(torch.empty(*shape[:-2], shape[-2] + joined, shape[-1], dtype=dtype), 0) for shape in plain
        )
    if residue > joined:
        layer.keys, layer.values = (
            torch.empty(*shape[:-2], residue - joined, shape[-1], dtype=dtype) for shape in plain
        )
    layer.cumulative_length += num_tokens
