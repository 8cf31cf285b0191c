"""What the ledger's symbols stand for in one step."""

from fractions import Fraction
from math import prod
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


def storage_class(tensor: Tensor) -> StorageClass:
    """What the size of `tensor`'s storage depends on."""
    return tensor.shape, tensor.dtype.itemsize


def storage_bytes(tensor: Tensor, sizes: Sizes) -> int:
    """Bytes the allocator hands out for `tensor`."""
    return sizes[storage_class(tensor)]
