"""Sizes that follow from other sizes by more than a product; `str()` of one is its formula."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from .dtype import DType
from .ledger import Shape, Symbols, numel


@dataclass(frozen=True, slots=True)
class Derived(ABC):
    """A dimension computed from others, whose product `of` is."""

    of: Shape

    @abstractmethod
    def size(self, sizes: Symbols) -> int:
        """The number it stands for."""


def _written(shape: Shape) -> str:
    return "·".join(map(str, shape))


@dataclass(frozen=True, slots=True)
class Shorter(Derived):
    """The shorter side of a matrix, `of` being its rows."""

    columns: Shape

    def size(self, sizes: Symbols) -> int:
        return min(numel(self.of, sizes), numel(self.columns, sizes))

    def __str__(self) -> str:
        return f"min({_written(self.of)}, {_written(self.columns)})"


@dataclass(frozen=True, slots=True)
class Blocks(Derived):
    """Blocks of `per` elements, the last one as full as may be."""

    per: int

    def size(self, sizes: Symbols) -> int:
        return -(-numel(self.of, sizes) // self.per)

    def __str__(self) -> str:
        return f"⌈{_written(self.of)} / {self.per}⌉"


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

    def size(self, sizes: Symbols) -> int:
        elements = numel(self.of, sizes)
        if self.paged and elements >= SMALLEST_PAGED:
            return 0
        return elements if elements >= SMALLEST_8BIT else DType.FP32.nbytes(elements)

    def __str__(self) -> str:
        return f"8-bit({_written(self.of)})"


@dataclass(frozen=True, slots=True)
class StateBlocks(Derived):
    """Blocks of one of bitsandbytes' 8-bit states; a state in fp32 has none."""

    def size(self, sizes: Symbols) -> int:
        elements = numel(self.of, sizes)
        return -(-elements // QUANTISATION_BLOCK) if elements >= SMALLEST_8BIT else 0

    def __str__(self) -> str:
        return f"⌈{_written(self.of)} / {QUANTISATION_BLOCK}⌉"
