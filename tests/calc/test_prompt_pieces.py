"""Prompts in passes, against passes that are cut one by one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from calc.prompt_pieces import FloorSums, Prompts, floor_sums, num_cuts, seen_pairs, tokens_before

small = st.integers(0, 30)
positive = st.integers(1, 30)


@given(n=small, a=small, b=small, m=positive)
def test_floor_sums_are_sums(n: int, a: int, b: int, m: int) -> None:
    floors = [(a * i + b) // m for i in range(n)]
    weighted = sum(i * q for i, q in enumerate(floors))
    assert floor_sums(n, a, b, m) == FloorSums(sum(floors), weighted, sum(q * q for q in floors))


@settings(max_examples=300)
@given(
    count=positive,
    length=positive,
    before=small,
    offset=small,
    pass_tokens=positive,
    most=st.none() | st.integers(0, 60),
)
def test_pieces_are_those_of_passes_cut_one_by_one(
    count: int, length: int, before: int, offset: int, pass_tokens: int, most: int | None
) -> None:
    prompts = Prompts(count, length, before, offset)
    pieces = [
        token
        for prompt in range(count)
        for token in range(length)
        if token == 0 or (offset + prompt * length + token) % pass_tokens == 0
    ]
    assert num_cuts(prompts, pass_tokens) == len(pieces) - count
    seen = [before + token for token in pieces]
    assert tokens_before(prompts, pass_tokens, most) == sum(each if most is None else min(each, most) for each in seen)
    tokens = [before + token + 1 for token in range(length)]
    assert seen_pairs(prompts, most) == count * sum(each if most is None else min(each, most) for each in tokens)


def test_large_sizes_take_no_longer() -> None:
    """Of two prompts of a whole pass each, nothing is cut."""
    assert num_cuts(Prompts(10**9, 10**9), 10**9) == 0
    assert num_cuts(Prompts(10**9, 10**9), 10**9 - 1) > 0
