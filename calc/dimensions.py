"""Sizes that follow from other sizes by more than a product; `str()` of one is its formula."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from .dtype import DType

Sides = tuple[Any, ...]
"""Dimensions that are multiplied."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A dimension computed from others."""

    of: Sides

    def size(self, sizes: Mapping[Any, int]) -> int:
        """The number it stands for."""
        raise NotImplementedError

    def _numel(self, sizes: Mapping[Any, int]) -> int:
        return prod(sizes[dimension] for dimension in self.of)

    def __str__(self) -> str:
        return "·".join(map(str, self.of))


@dataclass(frozen=True, slots=True)
class Shorter(Derived):
    """The shorter side of a matrix, `of` being its rows."""

    columns: Sides

    def size(self, sizes: Mapping[Any, int]) -> int:
        return min(self._numel(sizes), Derived(self.columns)._numel(sizes))

    def __str__(self) -> str:
        return f"min({Derived(self.of)}, {Derived(self.columns)})"


@dataclass(frozen=True, slots=True)
class Blocks(Derived):
    """Blocks of `per` elements, the last one as full as may be."""

    per: int

    def size(self, sizes: Mapping[Any, int]) -> int:
        return -(-self._numel(sizes) // self.per)

    def __str__(self) -> str:
        return f"⌈{Derived(self.of)} / {self.per}⌉"


SMALLEST_8BIT = 4096
"""min_8bit_size: tensors of fewer elements keep fp32 states."""
QUANTISATION_BLOCK = 256
"""Elements that share one scale."""
SMALLEST_PAGED = 100_000
"""get_state_buffer: states of fewer elements are not paged."""


@dataclass(frozen=True, slots=True)
class StateBytes(Derived):
    """Bytes of one of bitsandbytes' states of a tensor: a byte per element, in small tensors four."""

    paged: bool
    """Large ones live in managed memory, outside the allocator."""

    def size(self, sizes: Mapping[Any, int]) -> int:
        numel = self._numel(sizes)
        if self.paged and numel >= SMALLEST_PAGED:
            return 0
        return numel if numel >= SMALLEST_8BIT else DType.FP32.nbytes(numel)

    def __str__(self) -> str:
        return f"8-bit({Derived(self.of)})"


@dataclass(frozen=True, slots=True)
class StateBlocks(Derived):
    """Blocks of one of bitsandbytes' 8-bit states; a state in fp32 has none."""

    def size(self, sizes: Mapping[Any, int]) -> int:
        numel = self._numel(sizes)
        return -(-numel // QUANTISATION_BLOCK) if numel >= SMALLEST_8BIT else 0

    def __str__(self) -> str:
        return f"⌈{Derived(self.of)} / {QUANTISATION_BLOCK}⌉"
