"""How samples of different lengths form batches: padded to the longest of each, or packed into full sequences.

Pure arithmetic over a histogram of lengths; exact, and as quick for a million samples as for a thousand.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import comb

Histogram = Sequence[tuple[int, int]]
"""(length in tokens, number of samples), by rising length."""

Runs = list[tuple[int, int]]
"""(tokens of room left, number of bins), in the order in which the bins were opened."""


def random_epoch(value: Callable[[int], int], histogram: Histogram, batch_size: int) -> Fraction:
    """The sum over all samples of `value(longest of the sample's batch)`, the mean over all orders of one epoch.

    Every order is as likely as any other; the last batch takes what is left (DataLoader with shuffle=True and
    drop_last=False).
    """
    full, rest = divmod(_num_samples(histogram), batch_size)
    total = full * batch_size * _mean_of_longest(value, histogram, batch_size)
    return total + rest * _mean_of_longest(value, histogram, rest) if rest else total


def _mean_of_longest(value: Callable[[int], int], histogram: Histogram, batch_size: int) -> Fraction:
    """The mean of `value(longest)` over all batches: of n samples no longer than l, C(n, batch_size) batches have none
    longer (order statistics of a draw without replacement)."""
    seen = batches = total = 0
    for length, count in histogram:
        seen, before = seen + count, batches
        batches = comb(seen, batch_size)
        total += value(length) * (batches - before)
    return Fraction(total, batches)


def sorted_epoch(value: Callable[[int], int], histogram: Histogram, batch_size: int) -> int:
    """The same where the samples are sorted by falling length and then cut into batches."""
    total = start = longest = 0
    for length, count in reversed(histogram):
        begun = -(-(start + count) // batch_size) - -(-start // batch_size)
        total += begun * batch_size * value(length)
        start += count
        longest = length if begun else longest
    missing = -start % batch_size
    return total - missing * value(longest)


def first_fit_decreasing(histogram: Histogram, capacity: int) -> Runs:
    """Bins of `capacity` tokens, filled by falling length, each sample into the first bin that has room for it."""
    runs: Runs = []
    for length, count in reversed(histogram):
        full, rest = divmod(_put(runs, length, count), capacity // length)
        runs += _some((capacity % length, full), (capacity - rest * length, int(rest > 0)))
    return runs


def _put(runs: Runs, length: int, count: int) -> int:
    """Put samples of one length into the open bins. Returns how many found no room."""
    index = 0
    while count and index < len(runs):
        room, bins = runs[index]
        parts = 1
        if each := room // length:
            full = min(bins, count // each)
            last = count - full * each if full < bins else 0
            split = _some(
                (room - each * length, full), (room - last * length, int(full < bins)), (room, bins - full - 1)
            )
            runs[index : index + 1] = split
            parts = len(split)
            count -= full * each + last
        index += parts
    return count


def _some(*runs: tuple[int, int]) -> Runs:
    """Those that are not empty."""
    return [(room, bins) for room, bins in runs if bins > 0]


def _num_samples(histogram: Histogram) -> int:
    return sum(count for _, count in histogram)
