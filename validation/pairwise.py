"""Covering designs: choices in which any two settings of different knobs meet at least once."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

Choice = dict[str, Any]
Setting = tuple[int, int]
"""A knob's position and its value's."""


def all_pairs(knobs: Mapping[str, Sequence[Any]], possible: Callable[[Choice], bool]) -> list[Choice]:
    """Choices of one value for each knob, among them every pair of values that is `possible`.

    Greedy and deterministic: each choice starts with the first pair that is still missing and takes, knob by knob, the
    value that makes most missing pairs; of equals the one used least. `possible` is asked of two knobs and more.
    """
    names = list(knobs)

    def values(settings: Iterable[Setting]) -> Choice:
        return {names[knob]: knobs[names[knob]][value] for knob, value in sorted(settings)}

    settings = [(knob, value) for knob, name in enumerate(names) for value in range(len(knobs[name]))]
    missing = {(a, b) for a, b in combinations(settings, 2) if a[0] != b[0] and possible(values((a, b)))}
    uses: Counter[Setting] = Counter()
    found: list[Choice] = []
    while missing:
        chosen = list(min(missing))
        for knob in range(len(names)):
            if knob not in dict(chosen):
                allowed = [new for new in settings if new[0] == knob and possible(values([*chosen, new]))]
                chosen.append(max(allowed, key=lambda new: (_gain(new, chosen, missing), -uses[new], -new[1])))
        uses.update(chosen)
        missing -= set(combinations(sorted(chosen), 2))
        found.append(values(chosen))
    return found


def _gain(new: Setting, chosen: Iterable[Setting], missing: set[tuple[Setting, Setting]]) -> int:
    """How many missing pairs `new` makes with what is chosen."""
    return sum((min(new, old), max(new, old)) in missing for old in chosen)
