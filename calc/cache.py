"""A layer's key/value cache: a prefix's keys and values before the text's, or those of generation (transformers 5.23.0,
cache_utils.py, DynamicLayer.update, StaticLayer.update)."""

from enum import Enum
from typing import NamedTuple

from .dtype import DType
from .ledger import Dimension, Kind, Lent, Row, Shape, Tensor
from .lifetimes import gradient_of
from .operators import Numerics
from .primitives import cast, cat, frame, like

Pair = tuple[Tensor, Tensor]
"""Keys and values."""
LATENT: tuple[tuple[str, Shape], ...] = (("latent keys and values", ("Rk",)), ("turned keys", ("Q",)))
"""What latent attention keeps of a token, the same for all heads."""


class CacheUse(Enum):
    """What a layer does with a key/value cache."""

    NONE = "none"
    PREFIX = "finds the keys and values of a prefix, and lets go of them at the end of forward"
    FILLED = "puts those of the prompt into an empty one"
    EXTENDED = "puts those of one more token behind those of all before it"


class Room(Enum):
    """What a static cache has for the tokens that come."""

    FREE = "places for all of them"
    TAKEN = "a window whose places are all taken: what is in them moves up by one"
    TOO_SHORT = "a window shorter than the prompt, which is attended by itself"


class Cache(NamedTuple):
    """What a layer's cache is, and what is done with it."""

    use: CacheUse = CacheUse.NONE
    windowed: bool = False
    """Of the tokens in it only those of a sliding window are seen."""
    latent: bool = False
    """Keys and values lie in it as the latent they come of."""
    heads: Dimension = "K"
    """How many keys and values of a token lie in it, where they do."""
    room: Room | None = None
    """Of a static cache, whose places are there from the first token on; none: it grows."""

    @property
    def keys(self) -> Dimension:
        """How many keys a layer sees, of the cache and of the text."""
        if self.use is CacheUse.NONE:
            return "S"
        return "S+Tw" if self.windowed else "S+T"

    def found(self, numerics: Numerics) -> Pair:
        """One layer's keys and values before the text's."""
        if self.use is CacheUse.PREFIX:
            return self._pair("prefix {}", "T", numerics, Kind.ACTIVATIONS)
        return self._pair("{} of the tokens before", "Tk" if self.windowed else "T", numerics, Kind.KV_CACHE)

    def left(self, numerics: Numerics) -> Pair:
        """One layer's keys and values, those before the text's included: what the cache then holds."""
        if self.use is CacheUse.PREFIX:
            return self._pair("{} with prefix", self.keys, numerics, Kind.ACTIVATIONS)
        places = "Tk" if self.room and self.windowed else self.keys
        return self._pair("{} in the cache", places, numerics, Kind.KV_CACHE)

    def _pair(self, name: str, tokens: Dimension, numerics: Numerics, kind: Kind) -> Pair:
        of_tokens = LATENT if self.latent else ((what, (self.heads, "D")) for what in ("keys", "values"))
        keys, values = (
            Tensor(name.format(what), ("B", tokens, *of_token), numerics.weights, kind) for what, of_token in of_tokens
        )
        return keys, values

    def lent(self, numerics: Numerics) -> tuple[Lent, ...]:
        """What a layer finds in it and lets go of."""
        if self.use is CacheUse.FILLED or self.room:
            return ()
        pairs = zip(self.found(numerics), self.left(numerics), strict=True)
        return tuple(Lent(tensor=before, known_as=before, gradient=gradient_of(whole)) for before, whole in pairs)


NO_CACHE = Cache()


def updated(k: Tensor, v: Tensor, cache: Cache, numerics: Numerics) -> tuple[list[Row], Tensor, Tensor]:
    """The text's keys and values behind those found, in the wider type as autocast has it; copied also where none are
    found; as they are without a cache. The cache of a layer that slides lets go of the keys it found when it has the
    values, too (DynamicSlidingWindowLayer.update)."""
    if cache.use is CacheUse.NONE:
        return [], k, v
    if cache.room:
        return _placed(k, v, cache, cache.room, numerics)
    rows: list[Row] = []
    old, new = cache.found(numerics), cache.left(numerics)
    for text, before, whole in zip((k, v), old, new, strict=True):
        wide = text
        if text.dtype is not numerics.weights:
            wide = like(text, f"{text.name} in {numerics.weights.label}", dtype=numerics.weights)
            rows.append(cast(text, wide))
        rows.append(cat((wide,) if cache.use is CacheUse.FILLED else (before, wide), whole))
    if cache.windowed:
        rows.append(frame(*old))
    return [*rows, frame(k, v)], *new


def _placed(k: Tensor, v: Tensor, cache: Cache, room: Room, numerics: Numerics) -> tuple[list[Row], Tensor, Tensor]:
    """StaticLayer.update and StaticSlidingWindowLayer.update: the text's keys and values in their places, which the
    prompt's pass makes (lazy_initialization)."""
    places = cache.left(numerics)
    rows = [Row(name="zeros", reads=(), writes=(each,)) for each in places if cache.use is CacheUse.FILLED]
    pairs = tuple(zip(places, (k, v), strict=True))
    if room is Room.TAKEN:
        moved = tuple(like(each, f"{each.name}, moved") for each in places)
        index = Tensor("last place", (1,), DType.INT64)
        rows += [Row(name="roll", reads=(old,), writes=(new,)) for old, new in zip(places, moved, strict=True)]
        rows.append(Row(name="tensor", reads=(), writes=(index,)))
        rows += [_written("index_put_", new, text, index) for new, text in zip(moved, (k, v), strict=True)]
        rows += [_written("copy_", old, new) for old, new in zip(places, moved, strict=True)]
        return [*rows, frame(*moved, index, k, v)], *places
    if room is Room.TOO_SHORT:
        return [*rows, *(_written("copy_", each, text) for each, text in pairs), frame(k, v)], k, v
    positions = Tensor("cache positions", ("S",), DType.INT64)
    counted = like(positions, "places from 0")
    rows.append(Row(name="add", reads=(), writes=(positions,), temporaries=(counted,)))
    rows += [_written("index_copy_", each, text, positions) for each, text in pairs]
    return [*rows, frame(positions, k, v)], *places


def _written(name: str, places: Tensor, text: Tensor, *index: Tensor) -> Row:
    """`text` is written into some of `places`."""
    written = Tensor(f"{text.name} in place", text.shape, text.dtype, Kind.KV_CACHE)
    return Row(name=name, reads=(places, text, *index), writes=(written,), in_place=True)
