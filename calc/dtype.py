"""Element types and their sizes."""

from enum import Enum
from fractions import Fraction
from math import ceil


class DType(Enum):
    """A tensor's element type; `itemsize` is its size in bytes."""

    FP32 = "fp32", 4
    BF16 = "bf16", 2
    FP16 = "fp16", 2
    INT32 = "int32", 4
    INT64 = "int64", 8
    BOOL = "bool", 1
    UINT8 = "uint8", 1
    INT8 = "int8", 1
    FP8 = "fp8", 1
    FOUR_BIT = "4-bit", Fraction(1, 2)

    def __init__(self, label: str, itemsize: int | Fraction) -> None:
        self.label = label
        self.itemsize = itemsize

    def nbytes(self, numel: int) -> int:
        """Bytes of `numel` elements; a last byte that is half used is whole."""
        return ceil(numel * self.itemsize)
