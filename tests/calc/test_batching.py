"""Batches of samples of different lengths, against each order and each bin written out."""

from collections import Counter
from fractions import Fraction
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from calc.batching import Histogram, first_fit_decreasing, random_epoch, sorted_epoch

CAPACITY = 40
lengths_and_batch_size = st.lists(st.integers(1, 9), min_size=1, max_size=6).flatmap(
    lambda lengths: st.tuples(st.just(lengths), st.integers(1, len(lengths)))
)


def histogram(lengths: list[int]) -> Histogram:
    return sorted(Counter(lengths).items())


def value(length: int) -> int:
    """Neither linear nor without a constant."""
    return length**2 + 3


def epoch(order: tuple[int, ...] | list[int], batch_size: int) -> int:
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return sum(len(batch) * value(max(batch)) for batch in batches)


@given(lengths_and_batch_size)
def test_a_random_epoch_is_the_mean_over_all_orders(drawn: tuple[list[int], int]) -> None:
    lengths, batch_size = drawn
    orders = [epoch(order, batch_size) for order in permutations(lengths)]
    assert random_epoch(value, histogram(lengths), batch_size) == Fraction(sum(orders), len(orders))


@given(lengths_and_batch_size)
def test_a_sorted_epoch_is_that_of_the_sorted_samples(drawn: tuple[list[int], int]) -> None:
    lengths, batch_size = drawn
    assert sorted_epoch(value, histogram(lengths), batch_size) == epoch(sorted(lengths, reverse=True), batch_size)


@given(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=60))
def test_bins_are_those_of_putting_sample_by_sample(lengths: list[int]) -> None:
    bins: list[int] = []
    for length in sorted(lengths, reverse=True):
        index = next((index for index, room in enumerate(bins) if room >= length), len(bins))
        bins[index:index] = [CAPACITY] * (index == len(bins))
        bins[index] -= length
    runs = first_fit_decreasing(histogram(lengths), CAPACITY)
    assert [room for room, count in runs for _ in range(count)] == bins


def test_millions_of_samples_take_no_longer() -> None:
    many = [(length, 10**6) for length in range(1, 513)]
    bins = first_fit_decreasing(many, 512)
    assert sum((512 - room) * count for room, count in bins) == 10**6 * 512 * 513 // 2
    assert random_epoch(lambda length: length, many, 8) > 0
