"""torch.cuda and NVML as a script, for the tests of measuring."""

from dataclasses import dataclass, field
from typing import Any

from validation.cases import case
from validation.machine import Machine

MIB = 2**20
TINY = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
EAGER = case(TINY, 2, 8, attention="eager")
OTHER = case(TINY, 1, 8, attention="eager")
ACCUMULATED = case(TINY, 1, 8, attention="eager", gradient_accumulation_steps=2)
WORKSPACES = {"forward_thread_bytes": 32 * MIB, "autograd_thread_bytes": 32 * MIB}
FRESH = {"measured_before": 0, "allocated_bytes": 0, "reserved_bytes": 0, "context_bytes": 0}


@dataclass
class FakeCuda:
    """torch.cuda's statistics as a script: every peak that is read is 1 MiB above the one before."""

    allocated: int = 100 * MIB
    peaks_read: int = 0
    resets: int = 0
    seconds: float = 0.0
    context_bytes: int = 500 * MIB
    emptied: int = 0
    workspaces: int = 64 * MIB
    history: list[str | None] = field(default_factory=list)

    def memory_stats(self) -> dict[str, int]:
        self.peaks_read += 1
        peak = self.allocated + self.peaks_read * MIB
        return {
            "allocated_bytes.all.peak": peak,
            "allocated_bytes.all.current": self.allocated + self.peaks_read,
            "reserved_bytes.all.peak": 2 * peak,
            "reserved_bytes.all.current": 2 * self.allocated,
            "requested_bytes.all.peak": peak - 7,
            "requested_bytes.all.current": self.allocated - 7,
            "num_alloc_retries": 0,
        }

    def reset_peak_memory_stats(self) -> None:
        self.resets += 1

    def memory_allocated(self) -> int:
        return self.allocated

    def clear_workspaces(self) -> None:
        self.allocated -= self.workspaces
        self.workspaces = 0

    def memory_reserved(self) -> int:
        return 2 * self.allocated

    def empty_cache(self) -> None:
        self.emptied += 1

    def used_bytes(self) -> int:
        return 1000 * MIB + self.context_bytes + self.memory_reserved()

    def event(self, enable_timing: bool) -> Any:
        fake = self

        class Event:
            def record(self) -> None:
                fake.seconds += 0.5
                self.at = fake.seconds

            def elapsed_time(self, end: Any) -> float:
                return 1000 * (end.at - self.at)

        return Event()


MACHINE = Machine(
    gpu_name="NVIDIA Fake 80GB",
    versions={"torch": "2.13.0", "cuda": "13.0", "driver": "600.1"},
    used_before_context_bytes=1000 * MIB,
    workspaces=WORKSPACES,
    facts={"compute_capability": "9.0"},
)
