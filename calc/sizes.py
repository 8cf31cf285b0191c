"""What the ledger's symbols stand for in one step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from itertools import count
from math import prod
from operator import itemgetter, neg
from typing import Any

from .dimensions import Derived
from .ledger import Shape, Tensor

ALLOCATION_UNIT_BYTES = 512
"""CUDACachingAllocator's kMinBlockSize: every storage is rounded up to it (c10/cuda/CUDACachingAllocator.cpp)."""

StorageClass = tuple[Shape, int | Fraction]
"""A shape and the size of an element in bytes: all that a storage's size depends on."""


class Sizes(dict[Any, int]):
    """Symbol -> size. Also shape -> number of elements, and storage class -> bytes as allocated, each computed once."""

    def __missing__(self, key: Any) -> int:
        if isinstance(key, tuple):
            value = _allocated(self[key[0]] * key[1]) if _is_storage(key) else prod(map(self.__getitem__, key))
        elif isinstance(key, int):
            value = key
        elif isinstance(key, Derived):
            value = key.size(self)
        else:
            raise KeyError(key)
        self[key] = value
        return value


def _is_storage(key: Shape | StorageClass) -> bool:
    return bool(key) and isinstance(key[0], tuple)


def _allocated(nbytes: int | Fraction) -> int:
    return -(-nbytes // ALLOCATION_UNIT_BYTES) * ALLOCATION_UNIT_BYTES


def storage_class(tensor: Tensor) -> StorageClass:
    """What the size of `tensor`'s storage depends on."""
    return tensor.shape, tensor.dtype.itemsize


def storage_bytes(tensor: Tensor, sizes: Sizes) -> int:
    """Bytes the allocator hands out for `tensor`."""
    return sizes[storage_class(tensor)]


# ---- The same by numbers: a step sums a thousand of them, and integers are looked up faster than shapes

Table = dict[int, int]
"""By the number of a shape its elements, by that of a storage class its bytes; by the negative number the same below
zero."""

_NUMBERS = count(1)
_KEYS: dict[int, Shape | StorageClass] = {}


@cache
def number_of(key: Shape | StorageClass) -> int:
    """The number of a shape or storage class, from 1 on. Shapes are of symbols, so there are some hundred."""
    number = next(_NUMBERS)
    _KEYS[number] = key
    return number


Counts = Mapping[int, int]
"""Of shapes or storage classes, by their numbers, how often each counts."""


def picker(keys: Sequence[Any]) -> Callable[[Mapping[Any, int]], tuple[int, ...]]:
    """`itemgetter`, which gives a tuple for any number of keys."""
    return itemgetter(*keys) if len(keys) > 1 else lambda table: tuple([table[key] for key in keys])


class Measures:
    """Shapes and storage classes, prepared for being computed together with many sizes."""

    def __init__(self, numbers: Iterable[int]) -> None:
        keys = [_KEYS[number] for number in numbers]
        storages: list[Any] = [key for key in keys if _is_storage(key)]
        shapes = dict.fromkeys([*(key for key in keys if not _is_storage(key)), *(shape for shape, _ in storages)])
        places = {shape: place for place, shape in enumerate(shapes)}
        self._dimensions = [picker(shape) for shape in shapes]
        self._storages = [(places[shape], itemsize) for shape, itemsize in storages]
        self._numbers = [*map(number_of, shapes), *map(number_of, storages)]
        self._negative = [-number for number in self._numbers]

    def table(self, sizes: Sizes) -> Table:
        """What they come to with `sizes`."""
        elements = [prod(dimensions(sizes)) for dimensions in self._dimensions]
        amounts = [*elements, *[_allocated(elements[place] * itemsize) for place, itemsize in self._storages]]
        table = dict(zip(self._numbers, amounts, strict=True))
        table.update(zip(self._negative, map(neg, amounts), strict=True))
        return table


class Total:
    """A sum over shapes or storage classes, prepared for being computed with many sizes. `counts` tells of each one's
    number, with one of a step's different sizes, how often it counts."""

    def __init__(self, counts: Mapping[tuple[int, int], int]) -> None:
        self.terms = [(group, number, times) for (group, number), times in counts.items()]

    def of(self, tables: Sequence[Table]) -> int:
        """The elements of all shapes, or the bytes of all storages."""
        return sum([tables[group][number] * times for group, number, times in self.terms])
