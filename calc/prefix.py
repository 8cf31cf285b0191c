"""Keys and values before the text's own, which reach each layer in a cache (transformers 5.23.0, cache_utils.py)."""

from .ledger import Gradient, Lent, Row, Tensor
from .lifetimes import gradient_of
from .operators import Numerics
from .primitives import cast, frame, like

PREFIX_LENGTH = "T"
TEXT_AND_PREFIX = "S+T"


def lent_prefixes(numerics: Numerics) -> tuple[Lent, Lent]:
    """Keys and values of one layer's prefix, as the embedding's part makes them for the layer."""
    keys, values = (
        Lent(tensor=prefix, known_as=prefix, gradient=gradient_of(_extended(name, numerics)))
        for name, prefix in ((name, _prefix(name, numerics)) for name in ("keys", "values"))
    )
    return keys, values


def extended(numerics: Numerics) -> tuple[Tensor, Tensor]:
    """A layer's keys and values, the prefix's before the text's: what the cache holds."""
    return _extended("keys", numerics), _extended("values", numerics)


def _prefix(name: str, numerics: Numerics) -> Tensor:
    return Tensor(f"prefix {name}", ("B", PREFIX_LENGTH, "K", "D"), numerics.weights)


def _extended(name: str, numerics: Numerics) -> Tensor:
    return Tensor(f"{name} with prefix", ("B", TEXT_AND_PREFIX, "K", "D"), numerics.weights)


def with_prefixes(k: Tensor, v: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor, Tensor]:
    """DynamicLayer.update: the text's keys and values behind the prefix's, in the wider type as autocast has it."""
    rows: list[Row] = []
    for name, text in (("keys", k), ("values", v)):
        if text.dtype is not numerics.weights:
            wide = like(text, f"{text.name} in {numerics.weights.label}", dtype=numerics.weights)
            rows.append(cast(text, wide))
            text = wide
        rows.append(join(_prefix(name, numerics), text, _extended(name, numerics)))
    return [*rows, frame(k, v)], *extended(numerics)


def join(first: Tensor, second: Tensor, out: Tensor) -> Row:
    """`torch.cat`: keeps nothing; the gradients are views of the whole's."""
    gradients = tuple(Gradient(of=each, passes=True, viewed=True) for each in (first, second))
    return Row(name="cat", reads=(first, second), writes=(out,), gradients=gradients)
