"""Sizes that follow from other sizes by more than a product; `str()` of one is its formula."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum

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


MOST_FUSED_ROWS = 4
"""_GEMM_4BIT_CUSTOM_FLOOR_M of bitsandbytes 0.50.2: on every NVIDIA GPU a fused kernel multiplies so few."""
FUSED_COLUMNS = 64
"""Of which the columns are a multiple there: the weights that share a scale."""


@dataclass(frozen=True, slots=True)
class WrittenOut(Derived):
    """The elements `of` that a product of `tokens` with a 4-bit weight of `columns` writes out: none where a fused
    kernel multiplies (bitsandbytes::gemm_4bit, backends/cuda/ops.py)."""

    tokens: Shape
    columns: Shape

    def size(self, sizes: Symbols) -> int:
        aligned = numel(self.columns, sizes) % FUSED_COLUMNS == 0
        return 0 if aligned and numel(self.tokens, sizes) <= MOST_FUSED_ROWS else numel(self.of, sizes)

    def __str__(self) -> str:
        return _written(self.of)


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


SORTED_FROM = 3073
"""embedding_dense_backward_cuda in Embedding.cu: fewer indices are added without a sort."""
ROWS_PER_SUM = 10
"""NROWS_PER_THREAD in EmbeddingBackwardKernel.cu."""
WARP, LARGEST_BLOCK = 32, 1024
"""Threads; MAX_BLOCK_SIZE in SortingCommon.cuh."""
FEWEST_BLOCKS, FEWEST_SUMS_PER_BLOCK = 1024, 4
"""min_blocks_for_good_occupancy and its neighbour: with fewer blocks and more sums for each, none are kept."""


class LookUp(StrEnum):
    """What the gradient of an embedding of many indices counts."""

    INDICES = "indices"
    TOKENS = "different indices, at most"
    SUMS = "sums of up to 10 rows, at most"
    ONE = "1"


@dataclass(frozen=True, slots=True)
class LookUpPart(Derived):
    """One of those, `of` being the indices; 0 where the kernel keeps no sums (embedding_backward_cuda_kernel)."""

    rows: Shape
    columns: Shape
    part: LookUp

    def size(self, sizes: Symbols) -> int:
        indices, width = numel(self.of, sizes), numel(self.columns, sizes)
        tokens = min(indices, numel(self.rows, sizes))
        sums = indices // ROWS_PER_SUM + tokens
        threads = -(-width // WARP) * WARP
        blocks = -(-tokens * threads // min(threads, LARGEST_BLOCK))
        adds_at_once = blocks < FEWEST_BLOCKS and sums > FEWEST_SUMS_PER_BLOCK * blocks
        if indices < SORTED_FROM or adds_at_once:
            return 0
        return {LookUp.INDICES: indices, LookUp.TOKENS: tokens, LookUp.SUMS: sums, LookUp.ONE: 1}[self.part]

    def __str__(self) -> str:
        return f"{self.part.name.lower()}({_written(self.of)}, {_written(self.rows)})"
