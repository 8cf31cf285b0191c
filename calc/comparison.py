"""Up to four scenarios side by side: in what they differ, and what that changes."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .estimation import Estimate, estimate
from .scenario import Scenario

MOST_SCENARIOS = 4

QUANTITIES: Mapping[str, Callable[[Estimate], int]] = {
    "parameters.total": lambda answer: answer.parameters.total,
    "parameters.trainable": lambda answer: answer.parameters.trainable,
    "memory.peak_allocated_bytes": lambda answer: answer.memory.peak_allocated_bytes,
    "memory.saved_activation_bytes": lambda answer: answer.memory.saved_activation_bytes,
    "memory.first_step_peak_allocated_bytes": lambda answer: answer.memory.first_step_peak_allocated_bytes,
    "flops.total": lambda answer: answer.flops.total,
    "flops.recompute": lambda answer: answer.flops.recompute,
    "flops.model_flops_per_token": lambda answer: answer.flops.model_flops_per_token,
}
"""What is compared beside the parts of the peak, by its name in the Estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The answers in the order of their scenarios; every tuple has one entry for each."""

    estimates: tuple[Estimate, ...]
    fields: Mapping[str, tuple[Any, ...]]
    """The fields in which the scenarios differ, by their dotted names; None where a scenario has no such field."""
    quantities: Mapping[str, tuple[int, ...]]
    """By the Estimate's dotted names, the parts of the peak as `memory.at_peak.…`."""

    @property
    def differences(self) -> dict[str, tuple[int, ...]]:
        """Each quantity against the first scenario's."""
        return {name: tuple(value - values[0] for value in values) for name, values in self.quantities.items()}

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


def _quantities(estimates: Sequence[Estimate]) -> dict[str, tuple[int, ...]]:
    named = {name: tuple(map(quantity, estimates)) for name, quantity in QUANTITIES.items()}
    parts = estimates[0].memory.at_peak
    return named | {
        f"memory.at_peak.{part}": tuple(answer.memory.at_peak[part] for answer in estimates) for part in parts
    }
