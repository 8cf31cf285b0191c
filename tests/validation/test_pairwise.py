"""Choices in which all pairs meet."""

from itertools import combinations, product
from typing import Any

import pytest

from validation.pairwise import all_pairs


def anything(_: dict[str, Any]) -> bool:
    return True


def pairs(choices: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    return {pair for choice in choices for pair in combinations(choice.items(), 2)}


KNOBS = {"a": [1, 2, 3], "b": ["x", "y"], "c": [True, False], "d": [4, 5, 6]}


def test_every_pair_of_values_meets() -> None:
    choices = all_pairs(KNOBS, anything)
    everything = [dict(zip(KNOBS, values, strict=True)) for values in product(*KNOBS.values())]
    assert pairs(choices) == pairs(everything)
    # No fewer than the two longest knobs' product, and far fewer than all 36.
    assert 9 <= len(choices) <= 12


def test_what_cannot_meet_does_not_and_the_rest_still_does() -> None:
    def possible(choice: dict[str, Any]) -> bool:
        return (choice.get("a"), choice.get("d")) != (1, 4)

    choices = all_pairs(KNOBS, possible)
    assert all(map(possible, choices))
    assert pairs(choices) == pairs(all_pairs(KNOBS, anything)) - {(("a", 1), ("d", 4))}


def test_the_same_knobs_give_the_same_choices() -> None:
    assert all_pairs(KNOBS, anything) == all_pairs(KNOBS, anything)


@pytest.mark.parametrize("values", [[1], [1, 2]])
def test_two_knobs_give_their_product(values: list[int]) -> None:
    assert all_pairs({"a": values, "b": values}, anything) == [{"a": a, "b": b} for a in values for b in values]
