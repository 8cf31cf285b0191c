"""What gpucalc raises when it is asked something it cannot answer."""


class ConfigError(Exception):
    """A scenario or a model configuration that cannot be answered.

    `field` names the offending field by its public, dotted name (`adapter.rank`), `value` is what was given and
    `expected` says what would be right, or what the relation it broke is.
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field = field
        self.value = value
        self.expected = expected
        super().__init__(f"{field} = {shown(value)}: {expected}")


def shown(value: object, longest: int = 80) -> str:
    """`value` as a message quotes it, shortened."""
    text = repr(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"
