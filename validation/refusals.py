"""What of a scenario is not run here, by name."""

from collections.abc import Iterable
from typing import Any, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class CannotRun(ValueError):
    """A scenario's value that is not run here; `field` names it as the Scenario does."""

    def __init__(self, field: str, value: str, known: Iterable[Any]) -> None:
        self.field = field
        super().__init__(f"{field} = {value!r}: cannot be run; known: {', '.join(map(str, known))}")


def supported(field: str, asked: Key, known: dict[Key, Value]) -> Value:
    if asked not in known:
        raise CannotRun(field, str(asked), known)
    return known[asked]
