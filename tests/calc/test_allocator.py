"""The allocator against the rules of CUDACachingAllocator.cpp, and against a second one that looks at every block."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

import calc
from calc.allocator import Allocator, Block, replay, segment_bytes
from calc.reserved import reserved

KIB, MIB = 2**10, 2**20
UNIT = 512


def taken(*sizes: int) -> tuple[Allocator, list[Block]]:
    """A new allocator with a block of each size."""
    allocator = Allocator()
    return allocator, [allocator.malloc(size) for size in sizes]


def counters(allocator: Allocator) -> tuple[int, int, int]:
    return allocator.reserved_bytes, allocator.allocated_bytes, allocator.requested_bytes


# Sizes (get_allocation_size, round_size, should_split). kMinBlockSize 512, kSmallSize 1 MiB, kSmallBuffer 2 MiB,
# kLargeBuffer 20 MiB, kMinLargeAlloc 10 MiB, kRoundLarge 2 MiB.


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (UNIT, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + UNIT, 20 * MIB),
        (10 * MIB - UNIT, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + UNIT, 12 * MIB),
        (12 * MIB, 12 * MIB),
        (100 * MIB + UNIT, 102 * MIB),
    ],
)
def test_segments(size: int, segment: int) -> None:
    assert segment_bytes(size) == segment
    assert taken(size)[0].reserved_bytes == segment


@pytest.mark.parametrize(
    ("requested", "allocated"),
    [
        (1, 512),
        (512, 512),
        (513, 1024),
        (MIB - 1, MIB),
        (MIB + 1, MIB + 512),
        (10 * MIB, 10 * MIB),
        (11 * MIB - 512, 11 * MIB - 512),  # of 12 MiB: 1 MiB + 512 remain, more than kSmallSize, and are split off
        (11 * MIB, 12 * MIB),  # 1 MiB remains and is handed out with it
        (12 * MIB - 512, 12 * MIB),
        (18 * MIB + 1, 18 * MIB + 512),  # of 20 MiB: 2 MiB − 512 are split off
    ],
)
def test_blocks(requested: int, allocated: int) -> None:
    allocator, _ = taken(requested)
    assert (allocator.allocated_bytes, allocator.requested_bytes) == (allocated, requested)


def test_small_blocks_share_a_segment() -> None:
    assert counters(taken(MIB, MIB)[0]) == (2 * MIB, 2 * MIB, 2 * MIB)
    assert counters(taken(MIB, MIB, 1)[0]) == (4 * MIB, 2 * MIB + 512, 2 * MIB + 1)


def test_blocks_of_1_to_10_mib_share_a_segment() -> None:
    # 3 × 6 MiB fill 18 of 20 MiB; 2 MiB remain for a fourth of 2 MiB. 7 + 7 + 6 fit; 7 + 7 + 6.5 do not.
    assert taken(6 * MIB, 6 * MIB, 6 * MIB, 2 * MIB)[0].reserved_bytes == 20 * MIB
    assert taken(7 * MIB, 7 * MIB, 6 * MIB)[0].reserved_bytes == 20 * MIB
    assert taken(7 * MIB, 7 * MIB, 6 * MIB + 512 * KIB)[0].reserved_bytes == 40 * MIB


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator, (large, middle, small) = taken(40 * MIB, 30 * MIB, 20 * MIB)
    for block in (large, middle, small):
        allocator.free(block)
    assert allocator.malloc(25 * MIB).address == middle.address
    assert allocator.malloc(20 * MIB).address == small.address
    assert allocator.reserved_bytes == 90 * MIB


def test_of_equal_blocks_the_lowest_is_taken() -> None:
    allocator, blocks = taken(20 * MIB, 20 * MIB, 20 * MIB)
    for block in (blocks[1], blocks[2], blocks[0]):
        allocator.free(block)
    assert [allocator.malloc(20 * MIB).address for _ in blocks] == [0, 20 * MIB, 40 * MIB]


def test_the_front_of_a_block_is_handed_out() -> None:
    allocator, (block,) = taken(40 * MIB)
    allocator.free(block)
    assert allocator.malloc(10 * MIB).address == 0
    assert allocator.free_blocks() == [(10 * MIB, 30 * MIB)]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_neighbours_become_one_block(order: tuple[int, ...]) -> None:
    allocator, blocks = taken(6 * MIB, 6 * MIB, 6 * MIB)
    for index in order:
        allocator.free(blocks[index])
    assert allocator.free_blocks() == [(0, 20 * MIB)]
    assert allocator.malloc(20 * MIB).address == 0


def test_a_block_in_use_parts_its_neighbours() -> None:
    allocator, (first, _, third) = taken(6 * MIB, 6 * MIB, 6 * MIB)
    allocator.free(first)
    allocator.free(third)
    assert allocator.free_blocks() == [(0, 6 * MIB), (12 * MIB, 8 * MIB)]


def test_segments_stay_apart() -> None:
    allocator, blocks = taken(10 * MIB, 10 * MIB)
    for block in blocks:
        allocator.free(block)
    allocator.malloc(20 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_pools_stay_apart() -> None:
    allocator, (small, large) = taken(MIB, 19 * MIB)
    allocator.free(small)
    assert allocator.free_blocks() == [(0, 2 * MIB)]
    allocator.malloc(MIB + 512)  # not from the small segment's 2 MiB
    assert allocator.reserved_bytes == 2 * MIB + 20 * MIB + 20 * MIB
    allocator.free(large)
    allocator.malloc(MIB)
    allocator.malloc(MIB)
    allocator.malloc(512)  # not from the large segments' 20 MiB
    assert allocator.reserved_bytes == 44 * MIB


def test_peaks_stay_and_can_be_reset() -> None:
    allocator, (block,) = taken(11 * MIB)
    allocator.free(block)
    assert counters(allocator) == (12 * MIB, 0, 0)
    assert (allocator.peak_allocated_bytes, allocator.peak_requested_bytes) == (12 * MIB, 11 * MIB)
    allocator.reset_peaks()
    allocator.malloc(1)
    assert (allocator.peak_allocated_bytes, allocator.peak_requested_bytes) == (512, 1)


def test_a_history_is_replayed() -> None:
    # a, b, c are taken; b (the second latest), then a (the third latest) are freed; d fits where they were.
    allocator = Allocator()
    replay([6 * MIB, 6 * MIB, 6 * MIB, -2, -3, 12 * MIB], allocator)
    assert counters(allocator) == (20 * MIB, 18 * MIB, 18 * MIB)
    assert allocator.free_blocks() == [(18 * MIB, 2 * MIB)]


# Whatever is asked for.


@dataclass
class NaiveBlock:
    segment: int
    address: int
    size: int
    requested: int = 0
    is_free: bool = False


class Naive:
    """One list of all blocks by address, searched from its start each time."""

    def __init__(self) -> None:
        self.blocks: list[NaiveBlock] = []
        self.segments: list[int] = []

    def malloc(self, requested: int) -> NaiveBlock:
        size = max((requested + UNIT - 1) // UNIT, 1) * UNIT
        is_small = size <= MIB
        fitting = [b for b in self.blocks if b.is_free and (self.segments[b.segment] == 2 * MIB) == is_small]
        fitting = [b for b in fitting if b.size >= size]
        if not fitting:
            rounded = (size + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
            segment = 2 * MIB if is_small else 20 * MIB if size < 10 * MIB else rounded
            fitting = [NaiveBlock(len(self.segments), sum(self.segments), segment)]
            self.blocks += fitting
            self.segments.append(segment)
        block = min(fitting, key=lambda each: (each.size, each.address))
        remaining = block.size - size
        if remaining >= UNIT if is_small else remaining > MIB:
            rest = NaiveBlock(block.segment, block.address + size, remaining, is_free=True)
            self.blocks.insert(self.blocks.index(block) + 1, rest)
            block.size = size
        block.is_free = False
        block.requested = requested
        return block

    def free(self, block: NaiveBlock) -> None:
        block.is_free = True
        block.requested = 0
        merged: list[NaiveBlock] = []
        for each in self.blocks:
            last = merged[-1] if merged else None
            if last and last.is_free and each.is_free and last.segment == each.segment:
                last.size += each.size
            else:
                merged.append(each)
        self.blocks = merged

    def counters(self) -> tuple[int, int, int]:
        allocated = sum(block.size for block in self.blocks if not block.is_free)
        return sum(self.segments), allocated, sum(block.requested for block in self.blocks)

    def free_blocks(self) -> list[tuple[int, int]]:
        return [(block.address, block.size) for block in self.blocks if block.is_free]


SIZES = st.one_of(
    st.integers(1, 4 * KIB),
    st.integers(1, 4 * MIB),
    st.integers(1, 40 * MIB),
    st.builds(lambda mib, more: max(mib * MIB + more * UNIT, 1), st.integers(0, 24), st.integers(-2, 2)),
)


@st.composite
def histories(draw: st.DrawFn) -> list[int]:
    """Up to 60 entries; nothing is freed twice."""
    history: list[int] = []
    alive: list[int] = []
    made = 0
    for wanted in draw(st.lists(st.one_of(SIZES, st.integers(-40, -1)), max_size=60)):
        if wanted > 0:
            alive.append(made)
            made += 1
            history.append(wanted)
        elif alive:
            history.append(alive.pop(wanted % len(alive)) - made)
    return history


@given(histories())
def test_both_simulators_agree_after_every_event(history: list[int]) -> None:
    allocator, naive = Allocator(), Naive()
    blocks: list[tuple[Block, NaiveBlock]] = []
    highest = 0
    for entry in history:
        if entry > 0:
            blocks.append((allocator.malloc(entry), naive.malloc(entry)))
            block, naive_block = blocks[-1]
            assert (block.address, block.size_bytes) == (naive_block.address, naive_block.size)
        else:
            block, naive_block = blocks[entry]
            allocator.free(block)
            naive.free(naive_block)
        assert counters(allocator) == naive.counters()
        assert allocator.free_blocks() == naive.free_blocks()
        highest = max(highest, allocator.allocated_bytes)
    assert allocator.peak_allocated_bytes == highest


@given(histories())
def test_reserved_is_never_below_allocated_nor_allocated_below_requested(history: list[int]) -> None:
    allocator = Allocator()
    blocks: list[Block] = []
    for entry in history:
        before = allocator.reserved_bytes
        if entry > 0:
            blocks.append(allocator.malloc(entry))
        else:
            allocator.free(blocks[entry])
        assert allocator.reserved_bytes >= allocator.allocated_bytes >= allocator.requested_bytes
        new_segment = allocator.reserved_bytes - before
        assert new_segment % (2 * MIB) == 0
        assert new_segment in (0, 2 * MIB) or new_segment >= 10 * MIB


@given(histories())
def test_freeing_all_leaves_one_free_block_per_segment(history: list[int]) -> None:
    allocator = Allocator()
    blocks: list[Block] = []
    segments: list[tuple[int, int]] = []
    for entry in history:
        start = allocator.reserved_bytes
        if entry > 0:
            blocks.append(allocator.malloc(entry))
        else:
            allocator.free(blocks[entry])
        if allocator.reserved_bytes > start:
            segments.append((start, allocator.reserved_bytes - start))
    for block in blocks:
        if not block.key:
            allocator.free(block)
    assert (allocator.allocated_bytes, allocator.requested_bytes) == (0, 0)
    assert allocator.free_blocks() == segments


class Recording(Allocator):
    """Writes its history down."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[int] = []
        self.num_made = 0
        self.number: dict[int, int] = {}

    def malloc(self, requested_bytes: int) -> Block:
        block = super().malloc(requested_bytes)
        self.number[block.address] = self.num_made
        self.num_made += 1
        self.history.append(requested_bytes)
        return block

    def free(self, block: Block) -> None:
        self.history.append(self.number[block.address] - self.num_made)
        super().free(block)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 1032,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 88,
    "num_hidden_layers": 5,
    "intermediate_size": 3000,
    "vocab_size": 5000,
}


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"recompute": "full", "precision": "bf16", "gradient_accumulation_steps": 3},
        {"attention": "eager", "optimizer": "adamw-for-loop", "micro_batch_size": 2},
    ],
    ids=str,
)
def test_both_simulators_agree_on_whole_plans(choices: dict) -> None:
    step = calc.estimate(calc.Scenario(model=LLAMA, sequence_length=700, **choices)).step
    recorded, naive = Recording(), Naive()
    reserved(step, forward_workspace_bytes=8 * MIB, backward_workspace_bytes=8 * MIB, allocator=recorded)
    blocks: list[NaiveBlock] = []
    for entry in recorded.history:
        if entry > 0:
            blocks.append(naive.malloc(entry))
        else:
            naive.free(blocks[entry])
    assert len(recorded.history) > 1000
    assert naive.counters() == counters(recorded)
    assert naive.free_blocks() == recorded.free_blocks()
