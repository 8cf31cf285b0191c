"""Up to four scenarios side by side: in what they differ, and what that changes."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from .errors import ConfigError
from .estimation import Estimate, estimate
from .scenario import Scenario, Task
from .solution import Maximise, solve
from .timeline import Phase

MOST_SCENARIOS = 4

Number = int | float


class Unit(StrEnum):
    """What a quantity is counted in."""

    PARAMETERS = "parameters"
    BYTES = "bytes"
    FLOPS = "FLOP"
    SECONDS = "seconds"
    TOKENS_PER_SECOND = "tokens per second"
    JOULES = "joules"
    SEQUENCES = "sequences"


class Quantity(NamedTuple):
    """What is compared."""

    unit: Unit
    of: Callable[[Estimate], Number | None]
    """None: an answer has none."""


def _of_backward(quantity: Callable[[Estimate], int]) -> Callable[[Estimate], int | None]:
    """Inference has none."""
    return lambda answer: None if answer.scenario.task is Task.INFERENCE else quantity(answer)


def _of_time(name: str) -> Callable[[Estimate], float | None]:
    return lambda answer: getattr(answer.time, name) if answer.time else None


def _phase_peak(phase: Phase) -> Callable[[Estimate], int | None]:
    def peak(answer: Estimate) -> int | None:
        return next((each.peak_allocated_bytes for each in answer.memory.phases if each.name is phase), None)

    return peak


def _most_sequences(answer: Estimate) -> int | None:
    """The largest batch_size that fits; 0: not one."""
    if answer.scenario.task is not Task.INFERENCE or answer.scenario.gpu is None:
        return None
    value = solve(answer.scenario, maximise=Maximise.BATCH_SIZE).value
    return value if isinstance(value, int) else 0


MOST_SEQUENCES = "capacity.most_sequences"
QUANTITIES: Mapping[str, Quantity] = {
    "parameters.total": Quantity(Unit.PARAMETERS, lambda answer: answer.parameters.total),
    "parameters.trainable": Quantity(Unit.PARAMETERS, _of_backward(lambda answer: answer.parameters.trainable)),
    "memory.peak_allocated_bytes": Quantity(Unit.BYTES, lambda answer: answer.memory.peak_allocated_bytes),
    **{f"memory.phases.{each}.peak_allocated_bytes": Quantity(Unit.BYTES, _phase_peak(each)) for each in Phase},
    "memory.first_step_peak_allocated_bytes": Quantity(
        Unit.BYTES, _of_backward(lambda answer: answer.memory.first_step_peak_allocated_bytes)
    ),
    "memory.saved_activation_bytes": Quantity(
        Unit.BYTES, _of_backward(lambda answer: answer.memory.saved_activation_bytes)
    ),
    "memory.kv_cache_bytes": Quantity(Unit.BYTES, lambda answer: answer.memory.kv_cache_bytes),
    MOST_SEQUENCES: Quantity(Unit.SEQUENCES, _most_sequences),
    "time.prefill_seconds": Quantity(Unit.SECONDS, _of_time("prefill_seconds")),
    "time.seconds_per_output_token": Quantity(Unit.SECONDS, _of_time("seconds_per_output_token")),
    "time.output_tokens_per_second": Quantity(Unit.TOKENS_PER_SECOND, _of_time("output_tokens_per_second")),
    "time.total_seconds": Quantity(Unit.SECONDS, _of_time("total_seconds")),
    "time.joules_per_output_token": Quantity(Unit.JOULES, _of_time("joules_per_output_token")),
    "flops.total": Quantity(Unit.FLOPS, lambda answer: answer.flops.total),
    "flops.prefill": Quantity(Unit.FLOPS, lambda answer: answer.flops.prefill),
    "flops.decode": Quantity(Unit.FLOPS, lambda answer: answer.flops.decode),
    "flops.recompute": Quantity(Unit.FLOPS, _of_backward(lambda answer: answer.flops.recompute)),
    "flops.model_flops_per_token": Quantity(Unit.FLOPS, lambda answer: answer.flops.model_flops_per_token),
}
"""What is compared beside the parts of the peak, by its name in the Estimate; the most sequences are a search of their
own. Those that no answer has are left out."""
AT_PEAK = "memory.at_peak."


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The answers in the order of their scenarios; every tuple has one entry for each."""

    estimates: tuple[Estimate, ...]
    fields: Mapping[str, tuple[Any, ...]]
    """The fields in which the scenarios differ, by their dotted names; None where a scenario has no such field."""
    quantities: Mapping[str, tuple[Number | None, ...]]
    """By the Estimate's dotted names, the parts of the peak as `memory.at_peak.…`. None: an answer has none."""

    @property
    def differences(self) -> dict[str, tuple[Number | None, ...]]:
        """Each quantity against the first scenario's; None where one of the two has none."""
        return {
            name: tuple(_difference(value, values[0]) for value in values) for name, values in self.quantities.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the contract."""
        return {
            "fields": self.fields,
            "quantities": self.quantities,
            "differences": self.differences,
            "estimates": [answer.to_dict() for answer in self.estimates],
        }


def compare(scenarios: Sequence[Scenario]) -> Comparison:
    """The answers to one to four `scenarios` and their differences. Raises ConfigError for more or none."""
    return compared(list(_each(estimate, scenarios)))


def compared(estimates: Sequence[Estimate]) -> Comparison:
    """Answers that are there already, compared."""
    return Comparison(
        estimates=tuple(estimates),
        fields=_differing([answer.scenario for answer in estimates]),
        quantities=_quantities(estimates),
    )


def scenarios_from_objects(objects: Sequence[Any]) -> list[Scenario]:
    """The Scenarios to compare, from what JSON says of each."""
    return list(_each(Scenario.model_validate, objects))


def _each(function: Callable[[Any], Any], scenarios: Sequence[Any]) -> Iterator[Any]:
    """`function` of each scenario; what is wrong with one names it by its place, counted from 0."""
    if not 1 <= len(scenarios) <= MOST_SCENARIOS:
        raise ConfigError("scenarios", len(scenarios), f"should be 1 to {MOST_SCENARIOS} scenarios")
    for index, scenario in enumerate(scenarios):
        try:
            yield function(scenario)
        except ConfigError as error:
            raise ConfigError(f"scenarios.{index}.{error.field}", error.value, error.expected) from None


def _differing(scenarios: Sequence[Scenario]) -> dict[str, tuple[Any, ...]]:
    """Configs are compared field by field where every model is one."""
    whole = () if all(isinstance(scenario.model, dict) for scenario in scenarios) else ("model",)
    flat = [dict(_dotted(scenario.model_dump(mode="json"), whole)) for scenario in scenarios]
    names = dict.fromkeys(name for fields in flat for name in fields)
    values = {name: tuple(fields.get(name) for fields in flat) for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def _dotted(fields: Mapping[str, Any], whole: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict) and name not in whole:
            yield from _dotted(value, (), f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _difference(value: Number | None, first: Number | None) -> Number | None:
    return None if value is None or first is None else value - first


def unit_of(name: str) -> Unit:
    """What the quantity of that name in a Comparison is counted in."""
    return Unit.BYTES if name.startswith(AT_PEAK) else QUANTITIES[name].unit


def _quantities(estimates: Sequence[Estimate]) -> dict[str, tuple[Number | None, ...]]:
    named = {name: tuple(map(quantity.of, estimates)) for name, quantity in QUANTITIES.items()}
    known = {name: values for name, values in named.items() if any(value is not None for value in values)}
    parts = estimates[0].memory.at_peak
    return known | {f"{AT_PEAK}{part}": tuple(answer.memory.at_peak[part] for answer in estimates) for part in parts}
