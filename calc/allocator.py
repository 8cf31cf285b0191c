"""CUDA's caching allocator, simulated: one stream, default settings (torch 2.13.0, c10/cuda/CUDACachingAllocator.cpp).

Left out: what only other settings or several streams do (expandable segments, max_split_size, garbage collection,
record_stream), and what happens when the device is full: nothing cached is ever returned.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable

from .sizes import ALLOCATION_UNIT_BYTES
from .units import MIB

SMALL_LARGEST_BYTES = MIB
"""kSmallSize: what is larger comes from the large pool."""
SMALL_SEGMENT_BYTES = 2 * MIB
"""kSmallBuffer."""
LARGE_SEGMENT_BYTES = 20 * MIB
"""kLargeBuffer, of late the option large_segment_size_mb: a segment for several blocks."""
OWN_SEGMENT_BYTES = 10 * MIB
"""kMinLargeAlloc: from here on a block that needs a new segment gets one of its own size."""
OWN_SEGMENT_UNIT_BYTES = 2 * MIB
"""kRoundLarge."""

ADDRESS_BITS = 48


class Pool:
    """The free blocks of one pool, in the order of (size, address): as numbers that sort so, and by them."""

    __slots__ = ("blocks", "keys", "largest_tail_bytes")

    def __init__(self, largest_tail_bytes: int) -> None:
        self.keys: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.largest_tail_bytes = largest_tail_bytes
        """The most that is handed out beyond what was asked for, rather than split off (should_split)."""

    def add(self, block: "Block") -> None:
        block.key = key = block.size_bytes << ADDRESS_BITS | block.address
        insort(self.keys, key)
        self.blocks[key] = block

    def remove(self, block: "Block") -> None:
        del self.keys[bisect_left(self.keys, block.key)]
        del self.blocks[block.key]


class Block:
    """A part of a segment, between its neighbours there."""

    __slots__ = ("address", "after", "before", "key", "pool", "requested_bytes", "size_bytes")

    def __init__(
        self, pool: Pool, address: int, size_bytes: int, before: "Block | None" = None, after: "Block | None" = None
    ) -> None:
        self.pool = pool
        self.address = address
        self.size_bytes = size_bytes
        self.requested_bytes = 0
        self.before = before
        self.after = after
        self.key = 0
        """Its place among the free blocks; 0 while it is handed out."""


class Allocator:
    """torch.cuda's counters, in bytes, while blocks are taken and given back.

    Segments lie one behind the other from address 0 on. The real addresses are the driver's: they decide which of two
    free blocks of one size is taken.
    """

    def __init__(self) -> None:
        self.small = Pool(largest_tail_bytes=0)
        self.large = Pool(largest_tail_bytes=SMALL_LARGEST_BYTES)
        self.reserved_bytes = 0
        """Its own peak, as it never falls."""
        self.allocated_bytes = self.peak_allocated_bytes = 0
        """The blocks handed out, their tails included."""
        self.requested_bytes = self.peak_requested_bytes = 0

    def malloc(self, requested_bytes: int) -> Block:
        """The smallest free block that fits, of equals the one with the lowest address, or one of a new segment."""
        size = -(-requested_bytes // ALLOCATION_UNIT_BYTES) * ALLOCATION_UNIT_BYTES
        pool = self.small if size <= SMALL_LARGEST_BYTES else self.large
        place = bisect_left(pool.keys, size << ADDRESS_BITS)
        if place < len(pool.keys):
            block = pool.blocks.pop(pool.keys.pop(place))
            block.key = 0
        else:
            block = Block(pool, self.reserved_bytes, segment_bytes(size))
            self.reserved_bytes += block.size_bytes
        if block.size_bytes - size > pool.largest_tail_bytes:
            _split(block, size)
        block.requested_bytes = requested_bytes
        self.allocated_bytes += block.size_bytes
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        self.requested_bytes += requested_bytes
        if self.requested_bytes > self.peak_requested_bytes:
            self.peak_requested_bytes = self.requested_bytes
        return block

    def free(self, block: Block) -> None:
        """Gives `block` back; it becomes one with the free blocks beside it."""
        self.allocated_bytes -= block.size_bytes
        self.requested_bytes -= block.requested_bytes
        after, before = block.after, block.before
        if after is not None and after.key:
            _absorb(block, after)
            block.after = after.after
            if block.after is not None:
                block.after.before = block
        if before is not None and before.key:
            _absorb(block, before)
            block.address = before.address
            block.before = before.before
            if block.before is not None:
                block.before.after = block
        block.pool.add(block)

    def reset_peaks(self) -> None:
        """torch.cuda.reset_peak_memory_stats."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_requested_bytes = self.requested_bytes

    def free_blocks(self) -> list[tuple[int, int]]:
        """(address, bytes) of all free blocks."""
        pools = (self.small, self.large)
        return sorted((block.address, block.size_bytes) for pool in pools for block in pool.blocks.values())


def segment_bytes(size_bytes: int) -> int:
    """What is asked of the driver for a block of `size_bytes` that no free block can hold (get_allocation_size)."""
    if size_bytes <= SMALL_LARGEST_BYTES:
        return SMALL_SEGMENT_BYTES
    if size_bytes < OWN_SEGMENT_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-size_bytes // OWN_SEGMENT_UNIT_BYTES) * OWN_SEGMENT_UNIT_BYTES


def replay(history: Iterable[int], allocator: Allocator) -> None:
    """Repeat what was recorded: n for an allocation of n bytes, −d for the end of the d-th latest allocation."""
    blocks: list[Block] = []
    for entry in history:
        if entry > 0:
            blocks.append(allocator.malloc(entry))
        else:
            allocator.free(blocks[entry])


def _split(block: Block, size_bytes: int) -> None:
    """The front of `block` stays; the rest becomes a free block behind it."""
    after = block.after
    block.after = rest = Block(block.pool, block.address + size_bytes, block.size_bytes - size_bytes, block, after)
    if after is not None:
        after.before = rest
    block.size_bytes = size_bytes
    block.pool.add(rest)


def _absorb(block: Block, free: Block) -> None:
    block.pool.remove(free)
    block.size_bytes += free.size_bytes
