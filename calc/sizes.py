"""What the ledger's symbols stand for in one step."""

from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import cache, cached_property
from itertools import count
from math import prod
from operator import mul
from typing import Any, NamedTuple

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
            if key and isinstance(key[0], tuple):
                shape, itemsize = key
                value = -(-self[shape] * itemsize // ALLOCATION_UNIT_BYTES) * ALLOCATION_UNIT_BYTES
            else:
                value = prod(map(self.__getitem__, key))
        elif isinstance(key, int):
            value = key
        elif isinstance(key, Derived):
            value = key.size(self)
        else:
            raise KeyError(key)
        self[key] = value
        return value

    @cached_property
    def changes(self) -> "Changes":
        """What allocating a storage adds, by the number of its class; by the negative number what freeing it adds."""
        return Changes(self)


class Changes(dict[int, int]):
    """Each computed once."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes

    def __missing__(self, step: int) -> int:
        nbytes = self.sizes[_CLASSES[abs(step)]]
        self[step] = value = nbytes if step > 0 else -nbytes
        return value


class Counts(NamedTuple):
    """Shapes or storage classes, and how often each counts."""

    keys: tuple[Any, ...]
    times: tuple[int, ...]

    def summed(self, sizes: Sizes) -> int:
        """The elements of all shapes, or the bytes of all storages, each as often as it counts."""
        return sum(map(mul, map(sizes.__getitem__, self.keys), self.times))


def counted(keys: Iterable[Any]) -> Counts:
    """Each of `keys` as often as it is there."""
    return weighted(Counter(keys))


def weighted(counts: Mapping[Any, int]) -> Counts:
    return Counts(tuple(counts), tuple(counts.values()))


def storage_class(tensor: Tensor) -> StorageClass:
    """What the size of `tensor`'s storage depends on."""
    return tensor.shape, tensor.dtype.itemsize


_NUMBERS = count(1)
_CLASSES: dict[int, StorageClass] = {}


@cache
def storage_number(storage: StorageClass) -> int:
    """The number of a storage class, from 1 on: a step's events are summed by the thousand, and integers are looked up
    faster than shapes. Shapes are of symbols, so there are some hundred."""
    number = next(_NUMBERS)
    _CLASSES[number] = storage
    return number


def storage_bytes(tensor: Tensor, sizes: Sizes) -> int:
    """Bytes the allocator hands out for `tensor`."""
    return sizes[storage_class(tensor)]
