"""Sums of events: programs of a few tensors with the arithmetic beside them."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.dtype import DType
from calc.ledger import Kind, Tensor
from calc.lifetimes import Event
from calc.sizes import Measures, Sizes, storage_bytes
from calc.timeline import Course, Phase, Program, Stretch, Timeline, timeline

KIB = Tensor("kib", ("S",), DType.FP32)
LARGE = Tensor("large", ("S", 4), DType.FP32, Kind.TEMPORARIES)
HALF = Tensor("half", ("S",), DType.BF16, Kind.GRADIENTS)
SIZES = Sizes(S=256)
"""kib takes 1024 bytes, large 4096, half 512."""


def kept(*tensors: Tensor) -> list[Event]:
    return [(tensor, True) for tensor in tensors]


def freed(*tensors: Tensor) -> list[Event]:
    return [(tensor, False) for tensor in tensors]


def stretch(events: list[Event], count: int = 1, phase: Phase = Phase.FORWARD) -> Stretch:
    return Stretch(phase=phase, label="part", program=Program(events), times=count)


def summed(*stretches: Stretch, base_bytes: int = 0) -> Timeline:
    course = Course(stretches)
    return timeline(base_bytes, course, [Measures(course.numbers(0)).table(SIZES)])


def test_storages_are_rounded_up() -> None:
    def allocated(num_elements: int, dtype: DType = DType.FP32) -> int:
        return storage_bytes(Tensor("x", ("S",), dtype), Sizes(S=num_elements))

    assert [allocated(1), allocated(128), allocated(129)] == [512, 512, 1024]
    assert allocated(129, DType.BF16) == allocated(512, DType.BOOL) == 512
    assert storage_bytes(Tensor("scalar", (), DType.INT64), Sizes()) == 512


def test_literal_dimensions_and_unknown_symbols() -> None:
    assert SIZES["S", 3, 2] == 256 * 6
    assert SIZES[()] == 1
    with pytest.raises(KeyError, match="B"):
        _ = SIZES["S", "B"]


def test_running_bytes() -> None:
    program = Program([*kept(KIB, LARGE), *freed(KIB, LARGE)])
    assert program.running_bytes(Measures(program.numbers).table(SIZES)) == [1024, 5120, 4096, 0]
    assert Program([]).running_bytes({}) == [0]


def test_equal_shapes_are_one_class() -> None:
    twin = Tensor("twin", ("S",), DType.FP32)
    assert len({*Program(kept(KIB, twin)).steps}) == 1


def test_parts_that_add_up() -> None:
    # Each of three parts keeps 1024 and rises 1024 + 4096 above its start; the last starts at 100 + 2 * 1024.
    done = summed(stretch([*kept(KIB, LARGE), *freed(LARGE)], count=3), base_bytes=100)
    assert done.peak.peak_bytes == 100 + 2 * 1024 + 5120
    assert done.phase_end_bytes(Phase.FORWARD) == 100 + 3 * 1024
    assert done.peak.peak_part == 2


def test_parts_that_go_down() -> None:
    # The first part of two starts highest: 2048 kept before, 4096 for a moment.
    done = summed(
        stretch(kept(KIB), count=2),
        stretch([*kept(LARGE), *freed(LARGE, KIB)], count=2, phase=Phase.BACKWARD),
    )
    assert done.peak.peak_bytes == 2048 + 4096
    assert done.peak.peak_part == 0
    assert done.phase_end_bytes(Phase.BACKWARD) == 0
    assert (done.phase_peak_bytes(Phase.FORWARD), done.phase_peak_bytes(Phase.BACKWARD)) == (2048, 6144)


def test_the_base_is_a_peak_too() -> None:
    done = summed(stretch(freed(KIB)), base_bytes=2048)
    assert done.peak.peak_bytes == 2048
    assert done.peak_moment == (0, 0, 0)


def test_a_phase_that_comes_again() -> None:
    backward = stretch([*kept(HALF), *freed(KIB)], phase=Phase.BACKWARD)
    done = summed(stretch(kept(KIB)), backward, stretch([*kept(KIB, LARGE), *freed(LARGE)]), backward)
    assert done.phases == [Phase.FORWARD, Phase.BACKWARD]
    assert done.phase_peak_bytes(Phase.FORWARD) == 512 + 1024 + 4096
    assert (done.phase_end_bytes(Phase.FORWARD), done.phase_end_bytes(Phase.BACKWARD)) == (512 + 1024, 2 * 512)


def test_the_earliest_of_equal_peaks() -> None:
    done = summed(stretch([*kept(LARGE), *freed(LARGE)]), stretch([*kept(LARGE), *freed(LARGE)], phase=Phase.BACKWARD))
    assert done.peak.stretch.phase is Phase.FORWARD


def alive_at_peak(done: Timeline) -> dict[Tensor, int]:
    alive: Counter[Tensor] = Counter()
    for _, surplus, times in done.up_to_peak():
        alive.update({tensor: count * times for tensor, count in surplus.items()})
    return {tensor: count for tensor, count in alive.items() if count}


def test_what_is_alive_at_the_peak() -> None:
    done = summed(
        stretch(kept(KIB), count=3),
        stretch([*kept(HALF, LARGE), *freed(LARGE, KIB)], count=3, phase=Phase.BACKWARD),
        stretch(freed(HALF), count=3, phase=Phase.OPTIMIZER),
    )
    # Each backward part leaves 512 - 1024 bytes, so the first is the highest: 3 kib, one half, one large.
    assert done.peak.peak_bytes == 3 * 1024 + 512 + 4096
    assert alive_at_peak(done) == {KIB: 3, HALF: 1, LARGE: 1}
    parts = done.peak_by_kind({})
    assert {kind: size for kind, size in parts.items() if size} == {
        Kind.ACTIVATIONS: 3072,
        Kind.GRADIENTS: 512,
        Kind.TEMPORARIES: 4096,
    }


def test_backward_goes_down_the_layers() -> None:
    assert stretch([]).layer_step == 1
    assert stretch([], phase=Phase.BACKWARD).layer_step == -1


POOL = [Tensor(f"t{index}", ("S", index), DType.FP32, kind) for index, kind in enumerate(Kind, start=1)]
balanced = st.lists(st.sampled_from(POOL), max_size=6).flatmap(
    lambda made: st.permutations(made).map(lambda order: [*kept(*made), *freed(*order[: len(order) // 2])])
)


@given(parts=st.lists(st.tuples(balanced, st.integers(1, 4)), min_size=1, max_size=5), base=st.integers(0, 10**6))
def test_the_arithmetic_equals_playing_every_event(parts: list[tuple[list[Event], int]], base: int) -> None:
    done = summed(*(stretch(events, count) for events, count in parts), base_bytes=base)
    level = highest = base
    alive: Counter[Tensor] = Counter()
    alive_at_highest: Counter[Tensor] = Counter()
    for events, count in parts:
        for tensor, allocated in events * count:
            sign = 1 if allocated else -1
            alive[tensor] += sign
            level += sign * storage_bytes(tensor, SIZES)
            if level > highest:
                highest, alive_at_highest = level, alive.copy()
    assert done.peak.peak_bytes == highest
    assert done.phase_end_bytes(Phase.FORWARD) == level
    found = alive_at_peak(done)
    assert sum(storage_bytes(tensor, SIZES) * count for tensor, count in found.items()) == highest - base
    assert found == {tensor: count for tensor, count in alive_at_highest.items() if count}
