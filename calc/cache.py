"""A layer's key/value cache: a prefix's keys and values before the text's, or those of generation (transformers 5.23.0,
cache_utils.py, DynamicLayer.update)."""

from enum import Enum

from .ledger import Kind, Lent, Row, Tensor
from .lifetimes import gradient_of
from .operators import Numerics
from .primitives import cast, cat, frame, like

TOKENS_BEFORE = "T"
ALL_TOKENS = "S+T"
TOKENS_OF_WINDOW = "S+Tw"
STORED_TOKENS = "Tk"
Pair = tuple[Tensor, Tensor]
"""Keys and values."""


class Cache(Enum):
    """What a layer does with a key/value cache."""

    NONE = "none"
    PREFIX = "finds the keys and values of a prefix, and lets go of them at the end of forward"
    FILLED = "puts those of the prompt into an empty one"
    EXTENDED = "puts those of one more token behind those of all before it"


def is_windowed(cache: Cache, *, sliding: bool) -> bool:
    """Only the tokens of a window are seen of those in the cache; a prefix's knows no windows."""
    return sliding and cache is Cache.EXTENDED


def found(cache: Cache, numerics: Numerics, *, sliding: bool) -> Pair:
    """One layer's keys and values before the text's."""
    if cache is Cache.PREFIX:
        return _pair("prefix {}", TOKENS_BEFORE, numerics, Kind.ACTIVATIONS)
    tokens = STORED_TOKENS if is_windowed(cache, sliding=sliding) else TOKENS_BEFORE
    return _pair("{} of the tokens before", tokens, numerics, Kind.KV_CACHE)


def left(cache: Cache, numerics: Numerics, *, sliding: bool) -> Pair:
    """One layer's keys and values, those before the text's included: what the cache then holds."""
    if cache is Cache.PREFIX:
        return _pair("{} with prefix", ALL_TOKENS, numerics, Kind.ACTIVATIONS)
    tokens = TOKENS_OF_WINDOW if is_windowed(cache, sliding=sliding) else ALL_TOKENS
    return _pair("{} in the cache", tokens, numerics, Kind.KV_CACHE)


def _pair(name: str, tokens: str, numerics: Numerics, kind: Kind) -> Pair:
    keys, values = (
        Tensor(name.format(each), ("B", tokens, "K", "D"), numerics.weights, kind) for each in ("keys", "values")
    )
    return keys, values


def lent(cache: Cache, numerics: Numerics, *, sliding: bool = False) -> tuple[Lent, ...]:
    """What a layer finds in its cache and lets go of."""
    if cache is Cache.FILLED:
        return ()
    pairs = zip(found(cache, numerics, sliding=sliding), left(cache, numerics, sliding=sliding), strict=True)
    return tuple(Lent(tensor=before, known_as=before, gradient=gradient_of(whole)) for before, whole in pairs)


def updated(
    k: Tensor, v: Tensor, cache: Cache, numerics: Numerics, *, sliding: bool
) -> tuple[list[Row], Tensor, Tensor]:
    """The text's keys and values behind those found, in the wider type as autocast has it; copied also where none are
    found. The cache of a layer that slides lets go of the keys it found when it has the values, too
    (DynamicSlidingWindowLayer.update)."""
    rows: list[Row] = []
    old, new = found(cache, numerics, sliding=sliding), left(cache, numerics, sliding=sliding)
    for text, before, whole in zip((k, v), old, new, strict=True):
        wide = text
        if text.dtype is not numerics.weights:
            wide = like(text, f"{text.name} in {numerics.weights.label}", dtype=numerics.weights)
            rows.append(cast(text, wide))
        rows.append(cat((wide,) if cache is Cache.FILLED else (before, wide), whole))
    if is_windowed(cache, sliding=sliding):
        rows.append(frame(*old))
    return [*rows, frame(k, v)], *new
