"""Recorded allocator histories through calc's simulation of the allocator: its counters beside torch's."""

import base64
import json
import zlib
from dataclasses import dataclass

from calc.allocator import Allocator, replay
from validation.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One counter of one recorded history."""

    record: Record
    quantity: str
    simulated: int
    measured: int

    @property
    def is_exact(self) -> bool:
        return self.simulated == self.measured

    def __str__(self) -> str:
        return (
            f"{self.record.id}: replayed {self.quantity} {self.simulated:,}, measured {self.measured:,} "
            f"({self.simulated - self.measured:+,} bytes)"
        )


def replayed(record: Record) -> list[Replayed]:
    """The counters after the whole history, which is that of the model, the first and the second step, cuBLAS's
    workspaces included.

    Nothing for a record without a history, and for one whose allocator had to return segments and try again: that is
    not simulated.
    """
    history = record.measured.get("allocator_history")
    if history is None or record.failed or record.measured["memory"]["allocation_retries"]:
        return []
    allocator = Allocator()
    replay(unpacked(history), allocator)
    simulated = {
        "peak_reserved_bytes": allocator.reserved_bytes,
        "peak_allocated_bytes": allocator.peak_allocated_bytes,
        "peak_requested_bytes": allocator.peak_requested_bytes,
        "end_allocated_bytes": allocator.allocated_bytes,
    }
    measured = _counters(record)
    return [
        Replayed(record=record, quantity=quantity, simulated=value, measured=measured[quantity])
        for quantity, value in simulated.items()
    ]


def unpacked(history: str) -> list[int]:
    """What validation.cuda.packed packed."""
    return json.loads(zlib.decompress(base64.b64decode(history)))


def _counters(record: Record) -> dict[str, int]:
    """torch's, over both steps."""
    memory = record.measured["memory"]
    phases = [*memory["first_step_phases"], *memory["phases"]]
    peaks = ("peak_reserved_bytes", "peak_allocated_bytes", "peak_requested_bytes")
    highest = {counter: max(phase[counter] for phase in phases) for counter in peaks}
    return highest | {"end_allocated_bytes": phases[-1]["end_allocated_bytes"]}
