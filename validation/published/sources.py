"""The published figures with their sources: one JSON file a source, beside this module."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Figures of the same source that are not compared, and why."""

    count: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One table, measured with one script on one GPU."""

    name: str
    title: str
    url: str
    """With the commit."""
    gpu: str
    """As the source calls it."""
    versions: dict[str, str]
    metric: str
    """What was read."""
    how: str
    """What ran, from the source's own script, and how its numbers are rounded."""
    compared: Literal["step", "kernel", "device"]
    """Allocated bytes with the ledger's answer for a Scenario, or with the traced call of a kernel; or a process's
    bytes of the device with the ledger's events sent through the allocator, and the context."""
    largest_error: float
    """The bound that its figures are held to, relative to the published one."""
    figures: list[dict[str, Any]]
    left_out: tuple[LeftOut, ...] = ()
    remarks: list[str] = field(default_factory=list)
    """Where differences come from, or that it is not known."""


def read(path: Path) -> Source:
    given = json.loads(path.read_text(encoding="utf-8"))
    left_out = tuple(LeftOut(**each) for each in given.pop("left_out", ()))
    return Source(**given, left_out=left_out)


def read_all() -> list[Source]:
    return [read(path) for path in sorted(FOLDER.glob("*.json"))]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A published figure and ours, in bytes."""

    setup: str
    published_bytes: int
    our_bytes: int
    beside: tuple[str, ...] = ()
    """What the ledger leaves out, by name; counted in `our_bytes`."""

    @property
    def relative_error(self) -> float:
        return (self.our_bytes - self.published_bytes) / self.published_bytes
