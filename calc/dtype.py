"""Element types and their sizes."""

from enum import Enum
from fractions import Fraction
from math import ceil


class DType(Enum):
    """A tensor's element type; `itemsize` is its size in bytes: of llama.cpp's types (ggml-common.h) that of a block by
    the weights in it."""

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
    Q8_0 = "q8_0", Fraction(34, 32)
    Q6_K = "q6_K", Fraction(210, 256)
    Q5_K = "q5_K", Fraction(176, 256)
    Q5_1 = "q5_1", Fraction(24, 32)
    Q5_0 = "q5_0", Fraction(22, 32)
    Q4_K = "q4_K", Fraction(144, 256)
    Q4_0 = "q4_0", Fraction(18, 32)

    def __init__(self, label: str, itemsize: int | Fraction) -> None:
        self.label = label
        self.itemsize = itemsize

    def nbytes(self, numel: int) -> int:
        """Bytes of `numel` elements; a last byte that is half used is whole."""
        return ceil(numel * self.itemsize)
