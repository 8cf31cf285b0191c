"""transformers' QuantizedCache with its backend HQQ, on machines that have neither the library nor a GPU.

What runs is QuantizedLayer.update of transformers 5.23.0; here are the operations of hqq 0.2.8 on CUDA around it
(core/quantize.py, optimize.py, bitpack.py), with axis 0. The search for the zero points stops by its error, never
before its second round: two stand for all, since each later one takes what the second does. On the same tensors the
library itself allocates the same, pass by pass.
"""

from typing import Any, NamedTuple

import torch
from transformers.cache_utils import QuantizedLayer

BITS = {"hqq-int8": 8, "hqq-int4": 4, "hqq-int2": 2}
BITS_OF_BYTE = 8
ROUNDS = 2
NORM, BETA = 0.7, 10.0


class Quantised(NamedTuple):
    """What Quantizer.quantize gives: the codes, and of its meta the tensors and the shape."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    shape: torch.Size


class EmulatedHqqLayer(QuantizedLayer):
    """HQQQuantizedLayer without the library."""

    keys: Any
    values: Any
    _quantized_keys: Any
    _quantized_values: Any

    def _quantize(self, tensor: torch.Tensor, axis: int) -> Any:
        codes, scale, zero = self._by_groups(tensor)
        scale = scale.to(self.keys.dtype)
        zero = zero.to(self.keys.dtype)
        return Quantised(codes, scale, zero, tensor.shape)

    def _by_groups(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantizer.quantize."""
        wide = tensor.float().reshape([self.q_group_size, -1])
        least = wide.min(axis=0, keepdim=True)[0]  # pyright: ignore[reportCallIssue]
        largest = wide.max(axis=0, keepdim=True)[0]  # pyright: ignore[reportCallIssue]
        top = 2**self.nbits - 1
        span = largest - least
        scale = top / span
        scale = torch.where(span.abs() <= 1e-4, torch.full_like(scale, 1.0), scale)
        scale = scale.clamp(max=2e4)
        zero = -least * scale
        numbers, scale, zero = searched(wide, scale, zero, top)
        del wide, least, largest
        scale = 1.0 / scale
        numbers = packed(numbers, BITS_OF_BYTE // self.nbits, self.nbits)
        return numbers, scale, zero

    def _dequantize(self, q_tensor: Quantised) -> Any:
        """Quantizer.dequantize."""
        numbers = unpacked(q_tensor.codes, BITS_OF_BYTE // self.nbits, self.nbits, self.dtype)
        return ((numbers - q_tensor.zeros) * q_tensor.scales).reshape(q_tensor.shape)


def searched(
    wide: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """optimize_weights_proximal_legacy."""
    half = wide.to(torch.float16)
    scale = scale.to(torch.float16)
    zero = zero.to(torch.float16)
    best = torch.tensor(torch.inf, dtype=torch.float32)
    back = numbers = None
    for _ in range(ROUNDS):
        back, numbers, zero, scale = step(half, scale, zero, top)
        error = torch.abs(half - back).mean().float()
        torch.lt(error, best)  # what the library looks at
        best = error
    del half, numbers, back
    return torch.round(wide * scale + zero).clamp_(0, top), scale, zero


def step(half: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int) -> tuple[torch.Tensor, ...]:
    """optimize_weights_proximal_legacy_step."""
    numbers = torch.round(half * scale + zero).clamp_(0, top)
    back = (numbers - zero) / scale
    left = shrunk(half - back)
    zero = torch.mean(numbers - (half - left) * scale, axis=0, keepdim=True)  # pyright: ignore[reportCallIssue]
    return back, numbers, zero, scale


def shrunk(x: torch.Tensor) -> torch.Tensor:
    """shrink_lp_op."""
    out = torch.abs(x)
    out.sub_((1.0 / BETA) * out.pow(NORM - 1)).clamp_min_(0.0)
    out.mul_(torch.sign(x))
    return out


def packed(numbers: torch.Tensor, per_byte: int, bits: int) -> torch.Tensor:
    """BitPack.pack_8bit_u8, pack_4bit_u8, pack_2bit_u8."""
    numbers = numbers.to(torch.uint8)
    rows = len(numbers) // per_byte
    if per_byte == 1:
        return numbers
    if per_byte == 2:
        return (numbers[:rows] << bits) | numbers[rows:]
    first, second, third, last = (numbers[part * rows : (part + 1) * rows] for part in range(4))
    return first << 6 | second << 4 | third << 2 | last


def unpacked(codes: torch.Tensor, per_byte: int, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """BitPack.unpack_8bit_u8, unpack_4bit_u8, unpack_2bit_u8."""
    if per_byte == 1:
        return codes.to(dtype)
    rows = len(codes)
    numbers = torch.empty([per_byte * rows, codes.shape[1]], dtype=dtype, device=codes.device)
    for part in range(per_byte - 1):
        numbers[part * rows : (part + 1) * rows] = (codes & 0b11110000) >> bits
    numbers[-rows:] = codes & 0b00001111
    return numbers
