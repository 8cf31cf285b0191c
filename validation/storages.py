"""The storages under tensors, as the CUDA allocator sees them. Imports nothing of calc."""

from collections.abc import Iterable

import torch

ALLOCATION_UNIT_BYTES = 512


def allocated_bytes(size: int) -> int:
    """`size` rounded up to the allocator's unit."""
    return -(-size // ALLOCATION_UNIT_BYTES) * ALLOCATION_UNIT_BYTES


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors' storages, each once, as they are allocated."""
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(map(allocated_bytes, sizes.values()))
