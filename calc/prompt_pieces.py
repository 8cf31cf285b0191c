"""Prompts in passes of equal size: which pieces they come in, and what each piece finds before it.

An engine runs the prompts of all its sequences one behind the other, `pass_tokens` of them at a time (chunked prefill):
a pass ends wherever its tokens do, in the midst of a prompt, too. Sums over all pieces, in closed form: their number is
that of sequences and passes, and both may be large.
"""

from typing import NamedTuple


class Prompts(NamedTuple):
    """`number` prompts of `length` tokens that are run, each with `before` tokens that are in the cache already."""

    number: int
    length: int
    before: int = 0
    offset: int = 0
    """Tokens that are run before the first of them."""

    @property
    def tokens(self) -> int:
        return self.number * self.length


def num_cuts(prompts: Prompts, pass_tokens: int) -> int:
    """How often a pass ends within a prompt: so many pieces there are more than prompts."""
    return _cuts_behind(prompts, pass_tokens, 0)[0]


def tokens_before(prompts: Prompts, pass_tokens: int, most: int | None = None) -> int:
    """The tokens before each piece, of which it sees `most` (a window), added up."""
    cuts, places = _cuts_behind(prompts, pass_tokens, 0)
    if most is None or most >= prompts.before + prompts.length:
        return (prompts.number + cuts) * prompts.before + places
    if most <= prompts.before:
        return (prompts.number + cuts) * most
    _, beyond = _cuts_behind(prompts, pass_tokens, most - prompts.before)
    return (prompts.number + cuts) * prompts.before + places - beyond


def seen_pairs(prompts: Prompts, most: int | None = None) -> int:
    """Pairs of a token and one that it sees, itself among them, of which there are `most`."""

    def up_to(num_tokens: int) -> int:
        whole = num_tokens if most is None else min(num_tokens, most)
        return whole * (whole + 1) // 2 + (num_tokens - whole) * (most or 0)

    return prompts.number * (up_to(prompts.before + prompts.length) - up_to(prompts.before))


def _cuts_behind(prompts: Prompts, pass_tokens: int, first: int) -> tuple[int, int]:
    """Of the ends of passes that lie more than `first` tokens into a prompt: their number, and how many tokens more,
    added up."""
    if first >= prompts.length:
        return 0, 0
    from_token = prompts.offset + first
    before = floor_sums(prompts.number, prompts.length, from_token, pass_tokens)
    until = floor_sums(prompts.number, prompts.length, prompts.offset + prompts.length - 1, pass_tokens)
    number = until.sum - before.sum
    ends = pass_tokens * (until.squares + until.sum - before.squares - before.sum) // 2
    starts = prompts.length * (until.weighted - before.weighted) + from_token * number
    return number, ends - starts


class FloorSums(NamedTuple):
    """Over i from 0 to n - 1, of q = ⌊(a·i + b) / m⌋: Σ q, Σ i·q, Σ q²."""

    sum: int
    weighted: int
    squares: int


def floor_sums(n: int, a: int, b: int, m: int) -> FloorSums:
    """In as many steps as Euclid's algorithm takes for a and m (Graham, Knuth, Patashnik, "Concrete Mathematics",
    section 3.5: whole parts are taken out, then the lattice points below the line are counted by columns)."""
    if n <= 0:
        return FloorSums(0, 0, 0)
    ones, firsts, seconds = n, n * (n - 1) // 2, (n - 1) * n * (2 * n - 1) // 6
    whole_a, whole_b = a // m, b // m
    rest_a, rest_b = a % m, b % m
    rest = FloorSums(0, 0, 0)
    rows = (rest_a * (n - 1) + rest_b) // m
    if rows:
        # Column j of the points below the line begins where a·i + b reaches (j + 1)·m.
        turned = floor_sums(rows, m, m - rest_b - 1, rest_a)
        rest = FloorSums(
            sum=rows * (n - 1) - turned.sum,
            weighted=(rows * n * (n - 1) - turned.squares - turned.sum) // 2,
            squares=rows * rows * (n - 1) - 2 * turned.weighted - turned.sum,
        )
    return FloorSums(
        sum=rest.sum + whole_a * firsts + whole_b * ones,
        weighted=rest.weighted + whole_a * seconds + whole_b * firsts,
        squares=rest.squares
        + 2 * (whole_a * rest.weighted + whole_b * rest.sum)
        + whole_a**2 * seconds
        + 2 * whole_a * whole_b * firsts
        + whole_b**2 * ones,
    )
