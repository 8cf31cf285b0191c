"""transformers' QuantizedCache with its backend quanto, on machines that have neither the library nor a GPU.

What runs is QuantizedLayer.update of transformers 5.23.0; here are the operations of optimum-quanto 0.2.7 on CUDA
around it: MaxOptimizer, quantize_affine, pack_weights and QBitsDequantizer, whose unpack is a kernel that allocates
what it returns. On the same fake tensors the library itself allocates the same, operation by operation.
"""

from typing import Any, NamedTuple

import torch
from transformers.cache_utils import QuantizedLayer

BITS_OF_BYTE = 8
BITS = {"int4": 4, "int2": 2}


class Quantised(NamedTuple):
    """The library's WeightQBitsTensor."""

    codes: torch.Tensor
    scales: torch.Tensor
    shifts: torch.Tensor
    shape: torch.Size


class EmulatedQuantoLayer(QuantizedLayer):
    """QuantoQuantizedLayer without the library."""

    keys: Any
    values: Any
    _quantized_keys: Any
    _quantized_values: Any

    def _quantize(self, tensor: torch.Tensor, axis: int) -> Any:
        scales, shifts = self._scales_and_shifts(tensor)
        numbers = self._affine(tensor, scales, shifts)
        return Quantised(self._packed(numbers), scales, shifts, tensor.shape)

    def _scales_and_shifts(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        groups = tensor.reshape(-1, self.q_group_size)
        least = torch.amin(groups, dim=1, keepdim=True)
        largest = torch.amax(groups, dim=1, keepdim=True)
        scales = (largest - least) / (2**self.nbits - 1)
        return scales, -least

    def _affine(self, tensor: torch.Tensor, scales: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        data = torch.round((tensor.reshape(-1, self.q_group_size) + shifts) / scales)
        return torch.clamp(data, min=0, max=2**self.nbits - 1).to(torch.uint8)

    def _packed(self, numbers: torch.Tensor) -> torch.Tensor:
        per_byte = BITS_OF_BYTE // self.nbits
        num_rows = -(-len(numbers) // per_byte)
        packed = numbers.new_zeros(num_rows, self.q_group_size)
        for part in range(min(per_byte, len(numbers) // num_rows + 1)):
            rows = numbers[part * num_rows : (part + 1) * num_rows]
            packed[: len(rows)] |= rows << self.nbits * part
        return packed

    def _dequantize(self, q_tensor: Quantised) -> Any:
        rows, columns = q_tensor.codes.shape
        unpacked = q_tensor.codes.new_empty(rows * (BITS_OF_BYTE // self.nbits), columns)
        numbers = q_tensor.scales * unpacked[: len(q_tensor.scales)]
        numbers -= q_tensor.shifts
        return numbers.reshape(q_tensor.shape)
