"""Estimate against record: every number that both have, and how far apart they may be."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from calc import Estimate, Scenario, estimate
from validation.records import Kind, Record

BOUNDS: dict[Kind, dict[str, float]] = {
    "trace": {
        "parameters.*": 0.0,
        "flops.*": 0.0,
        "memory.persistent_bytes.*": 0.0,
        "memory.*saved*_bytes": 0.0,
        "memory.kv_cache_bytes": 0.0,
        "memory.*_allocated_bytes": 0.01,
    },
    "measurement": {
        "parameters.*": 0.0,
        "flops.*": 0.0,
        "memory.saved_activation_bytes": 0.02,
        "memory.library_workspace_bytes": 0.0,
        "memory.*_allocated_bytes": 0.02,
        "memory.*reserved_bytes": 0.05,
        "memory.device_bytes": 0.05,
    },
}
"""The largest relative error by quantity; the first pattern that fits counts.

Of reserved and device bytes only medians are aimed at (2 % and 3 %), since one freed block that is found again or not
decides over a whole segment. Beyond 5 % no such accident explains it: a tensor, a library or the context is wrong.
"""

SIMULATED: dict[str, Callable[[Estimate], int | None]] = {
    "memory.peak_reserved_bytes": lambda answer: answer.memory.peak_reserved_bytes,
    "memory.device_bytes": lambda answer: answer.memory.device_bytes,
}
"""What the Estimate computes when asked for, and is asked for only where a record has it."""

CATALOGUE_GPUS = {
    "NVIDIA A100-SXM4-80GB": "a100-sxm-80gb",
    "NVIDIA H100 80GB HBM3": "h100-sxm-80gb",
    "NVIDIA H200": "h200-sxm-141gb",
}
"""The catalogue's names of GPUs, by the driver's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One quantity of one record."""

    record: Record
    answer: Estimate
    quantity: str
    estimated: int
    measured: int

    @property
    def relative_error(self) -> float:
        """(estimated − measured) / measured: below zero is too low."""
        if self.estimated == self.measured:
            return 0.0
        return (self.estimated - self.measured) / self.measured if self.measured else float("inf")

    @property
    def bound(self) -> float:
        return bound(self.record.kind, self.quantity)

    @property
    def is_within(self) -> bool:
        return abs(self.relative_error) <= self.bound


def bound(kind: Kind, quantity: str) -> float:
    """How far apart the two may be; a quantity nobody stated a bound for is an error."""
    for pattern, largest in BOUNDS[kind].items():
        if fnmatch(quantity, pattern):
            return largest
    raise LookupError(f"no bound is stated for {quantity} of a {kind}")


def compare(record: Record) -> list[Comparison]:
    """All quantities that both the record and the Estimate of its scenario have."""
    answer = estimate(Scenario(**asked(record)))
    recorded = dict(leaves(record.measured))
    estimated = dict(numbers(answer))
    for quantity, simulated in SIMULATED.items():
        if quantity in recorded and (number := simulated(answer)) is not None:
            estimated[quantity] = number
    # torch counts the libraries' workspaces as allocated; the Estimate keeps them apart.
    workspace = recorded.get("memory.library_workspace_bytes", 0)
    for quantity in estimated:
        if quantity.endswith("_allocated_bytes"):
            estimated[quantity] += workspace
    return [
        Comparison(record=record, answer=answer, quantity=quantity, estimated=estimated[quantity], measured=measured)
        for quantity, measured in recorded.items()
        if quantity in estimated
    ]


def asked(record: Record) -> dict[str, Any]:
    """The record's scenario, on the GPU it was measured on where the catalogue has that."""
    on_gpu = {"gpu": CATALOGUE_GPUS[record.gpu_name]} if record.gpu_name in CATALOGUE_GPUS else {}
    return record.scenario | on_gpu


def numbers(answer: Estimate) -> Iterator[tuple[str, int]]:
    """The Estimate's numbers by dotted name, without those that it does not know or simulates."""
    parts = {part: getattr(answer, part).to_dict() for part in ("parameters", "memory", "flops")}
    return ((name, number) for name, number in leaves(parts) if name not in SIMULATED)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """(dotted name, number) of all whole numbers in nested objects; entries of a list go by their `name`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple):
        for inner in value:
            if isinstance(inner, dict) and "name" in inner:
                yield from leaves(inner, f"{name}.{inner['name']}")
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value
