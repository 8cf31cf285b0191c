"""What an answer has to keep to: the GPU's memory, and of a generation the seconds that a token may take."""

from dataclasses import dataclass
from enum import StrEnum
from math import inf

from .device_memory import Memory
from .errors import ConfigError
from .estimation import Estimate
from .scenario import Scenario, Task
from .units import format_bytes, format_gib, format_seconds

LATENCY = "max_seconds_per_token"


class Limit(StrEnum):
    """Why the next value is not the answer."""

    MEMORY = "memory"
    LATENCY = "latency"
    """A token would take longer than is wanted."""
    REFUSED = "refused"
    """There is no such scenario: beyond the learned positions, beyond what a kernel takes."""
    LARGEST_SIZE = "largest-size"
    """A Scenario takes no larger size."""


def room(memory: Memory) -> tuple[int, int]:
    """What may be taken of the GPU and what is left of that, of a scenario that names a GPU."""
    assert memory.usable_bytes is not None
    assert memory.headroom_bytes is not None
    return memory.usable_bytes, memory.headroom_bytes


@dataclass(frozen=True, slots=True)
class Target:
    """What an answer has to keep to beside the GPU's memory."""

    max_seconds_per_token: float | None = None

    def checked(self, scenario: Scenario) -> "Target":
        """Itself, if `scenario` has such seconds."""
        seconds = self.max_seconds_per_token
        if seconds is None:
            return self
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < inf:
            raise ConfigError(LATENCY, seconds, "should be a positive number of seconds")
        if scenario.task is not Task.INFERENCE:
            raise ConfigError(LATENCY, seconds, "is read with task = inference only")
        if scenario.output_length == 0:
            raise ConfigError(LATENCY, seconds, "needs an output_length of at least 1")
        return self

    def is_met(self, answer: Estimate) -> bool:
        return bool(answer.memory.fits) and self._is_fast(answer)

    def missed(self, name: str, answer: Estimate) -> tuple[Limit, str]:
        """Which limit `answer` passes, and by how much."""
        capacity, headroom = room(answer.memory)
        if headroom >= 0:
            return Limit.LATENCY, f"{name} {self._slowness(answer)}"
        needed = f"{name} needs {format_gib(capacity - headroom)} of {format_gib(capacity)}"
        return Limit.MEMORY, f"{needed}, {format_bytes(-headroom)} too much"

    def _is_fast(self, answer: Estimate) -> bool:
        if self.max_seconds_per_token is None:
            return True
        seconds = answer.time.seconds_per_output_token if answer.time else None
        return seconds is not None and seconds <= self.max_seconds_per_token

    def _slowness(self, answer: Estimate) -> str:
        seconds = answer.time.seconds_per_output_token if answer.time else None
        if seconds is None:
            return "has no time: no peak is published for the type of its weights"
        return f"takes {format_seconds(seconds)} a token of {format_seconds(self.max_seconds_per_token or 0)}"
