"""Histories replayed: a recorded one gives the allocator's own counters, and anything else does not."""

from typing import Any

import pytest

from calc.allocator import Allocator, replay
from validation.cuda import compact, packed
from validation.records import Record
from validation.replay import replayed, unpacked

MIB = 2**20
WORKSPACE = 8_519_680
HISTORY = [WORKSPACE, WORKSPACE, 11 * MIB, 3 * MIB, 700, -1, 30 * MIB, -4, 10 * MIB]
"""Two workspaces; a block with a tail of 1 MiB, one of 20 MiB's segment, a small one that is freed; then the first
one's is reused."""


def record_of(history: list[int] | None, **memory: int) -> Record:
    """A record, and the counters that the rules give by hand for HISTORY.

    Segments: 20 MiB with the workspaces (8.125 MiB each) and 3 MiB in its rest of 3.75 MiB, of which 0.75 MiB is too
    little to split off; 12 MiB; 2 MiB; 30 MiB. The last block finds the 12 MiB, and 2 MiB of it are split off.
    """
    counters = {
        "peak_reserved_bytes": 20 * MIB + 12 * MIB + 2 * MIB + 30 * MIB,
        "peak_allocated_bytes": 20 * MIB + 12 * MIB + 30 * MIB,
        "peak_requested_bytes": 2 * WORKSPACE + 11 * MIB + 3 * MIB + 30 * MIB,
        "end_allocated_bytes": 20 * MIB + 30 * MIB + 10 * MIB,
    }
    lower = dict.fromkeys(counters, 0)
    measured: dict[str, Any] = {
        "memory": {
            "first_step_phases": [{"name": "forward"} | lower],
            "phases": [{"name": "forward"} | lower, {"name": "optimizer"} | counters | memory],
            "allocation_retries": 0,
        },
    }
    if history is not None:
        measured["allocator_history"] = packed(history)
    return Record(kind="measurement", id="a case", scenario={}, holdout=False, gpu_name="a GPU", measured=measured)


def test_packing_is_undone() -> None:
    assert unpacked(packed(HISTORY)) == HISTORY


def test_a_history_gives_the_counters_of_its_rules() -> None:
    results = replayed(record_of(HISTORY))
    assert [each.quantity for each in results if each.is_exact] == [
        "peak_reserved_bytes",
        "peak_allocated_bytes",
        "peak_requested_bytes",
        "end_allocated_bytes",
    ]


@pytest.mark.parametrize("counter", ["peak_reserved_bytes", "peak_allocated_bytes", "end_allocated_bytes"])
def test_another_counter_is_named(counter: str) -> None:
    results = replayed(record_of(HISTORY, **{counter: 100 * MIB}))
    (other,) = [each for each in results if not each.is_exact]
    assert other.quantity == counter
    assert str(other).startswith(f"a case: replayed {counter} ")
    assert "measured 104,857,600 (-" in str(other)


def test_records_without_a_history_or_with_retries_are_left_out() -> None:
    assert replayed(record_of(None)) == []
    retried = record_of(HISTORY)
    retried.measured["memory"]["allocation_retries"] = 1
    assert replayed(retried) == []
    failed = record_of(HISTORY)
    failed.measured["out_of_memory"] = {}
    assert replayed(failed) == []


def test_torchs_events_become_a_history_that_can_be_replayed() -> None:
    """Addresses are reused; other events say nothing of a block."""
    events = [
        {"action": "segment_alloc", "addr": 0, "size": 2 * MIB},
        {"action": "alloc", "addr": 0, "size": 512},
        {"action": "alloc", "addr": 512, "size": 1000},
        {"action": "free_requested", "addr": 0, "size": 512},
        {"action": "free_completed", "addr": 0, "size": 512},
        {"action": "alloc", "addr": 0, "size": 300},
        {"action": "free_completed", "addr": 512, "size": 1000},
    ]
    allocator = Allocator()
    replay(compact(events), allocator)
    assert allocator.requested_bytes == 300
    assert allocator.free_blocks() == [(512, 2 * MIB - 512)]
