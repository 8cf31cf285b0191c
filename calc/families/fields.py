"""The fields of a config.json, checked as they are read."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from calc.errors import ConfigError
from calc.kinds import Activation
from calc.scenario import LARGEST_SIZE

MOST_RUNS = 256
"""An answer's time grows with the number of runs; no known model has as many layers."""

DEFAULT_LABELS = 2
"""PreTrainedConfig's."""

ACTIVATION_ALIASES = {"swish": Activation.SILU}


class Fields:
    """Reads fields of a config, with a default for those left out, and refuses what cannot be meant."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    @contextmanager
    def renamed(self, names: Mapping[str, str]) -> Iterator["Fields"]:
        """The same fields with those of `names` called as transformers does; messages call them as the config does."""
        common = {other: self._config[own] for own, other in names.items() if own in self._config}
        try:
            yield Fields({**self._config, **common})
        except ConfigError as error:
            written = {f"model.{other}": f"model.{own}" for own, other in names.items()}
            raise ConfigError(written.get(error.field, error.field), error.value, error.expected) from None

    def size(self, *names: str, default: int, smallest: int = 1) -> int:
        """A whole number, at least `smallest`, on which all of `names` agree that are given; without one `default`."""
        given = [
            (name, _whole_number(name, self._config[name], smallest))
            for name in names
            if self._config.get(name) is not None
        ]
        for name, value in given[1:]:
            first, agreed = given[0]
            if value != agreed:
                raise ConfigError(f"model.{name}", value, f"contradicts {first} = {agreed}")
        return given[0][1] if given else default

    def optional_size(self, name: str, *, default: int | None) -> int | None:
        """A positive whole number, or none where it is null."""
        value = self._config.get(name, default)
        return None if value is None else _whole_number(name, value, smallest=1)

    def flags(self, name: str, num_layers: int) -> list[bool] | None:
        """A 0 or 1 for each layer, or none where the list is left out."""
        value = self._config.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != num_layers or any(each not in (0, 1) for each in value):
            raise ConfigError(f"model.{name}", value, f"should list {num_layers} of 0 and 1")
        return [bool(each) for each in value]

    def is_given(self, name: str, *, default: bool) -> bool:
        """Whether a number switches a feature on: null switches it off, left out it is as by `default`."""
        if name not in self._config:
            return default
        value = self._config[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"model.{name}", value, "should be a number or null")
        return value is not None

    def value(self, name: str, *, default: Any) -> Any:
        """Whatever is given, for the family to check."""
        given = self._config.get(name)
        return default if given is None else given

    def is_null(self, name: str) -> bool:
        return name in self._config and self._config[name] is None

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._config.get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"model.{name}", value, "should be true or false")
        return value

    def probability(self, name: str, *, default: float) -> float:
        value = self._config.get(name, default)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ConfigError(f"model.{name}", value, "should be a number from 0 to below 1")
        return float(value)

    def activation(self, name: str, *, default: Activation) -> Activation:
        value = self._config.get(name, default)
        if isinstance(value, str):
            value = ACTIVATION_ALIASES.get(value, value)
        if value not in list(Activation):
            raise ConfigError(f"model.{name}", value, f"should be one of {', '.join(Activation)}")
        return Activation(value)

    def layer_types(self, num_layers: int) -> list[bool] | None:
        """Which layers attend through a sliding window, where the config lists it."""
        value = self._config.get("layer_types")
        if value is None:
            return None
        known = ("full_attention", "sliding_attention")
        if not isinstance(value, list) or len(value) != num_layers or any(kind not in known for kind in value):
            raise ConfigError("model.layer_types", value, f"should list {num_layers} of {', '.join(known)}")
        if sum(1 for _ in groupby(value)) > MOST_RUNS:
            raise ConfigError("model.layer_types", value, f"should change at most {MOST_RUNS - 1} times")
        return [kind == "sliding_attention" for kind in value]

    def rotary_dim(self, head_dim: int, name: str, *, default: float) -> int:
        """How many elements of a head positions turn: the share `partial_rotary_factor` of rope_parameters, which
        older files call rope_scaling, or else `name`."""
        nested = self._config.get("rope_parameters") or self._config.get("rope_scaling")
        given = nested.get("partial_rotary_factor") if isinstance(nested, Mapping) else None
        share = self._config.get(name) if given is None else given
        share = default if share is None else share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ConfigError(f"model.{name}", share, "should be a number above 0, at most 1")
        turned = int(head_dim * share)
        if turned % 2 or turned == 0:
            raise ConfigError(
                f"model.{name}", share, f"should turn pairs of elements of a head, not {turned} of {head_dim}"
            )
        return turned

    def indices(self, name: str, count: int) -> frozenset[int]:
        """Which of `count` a list names; none where it is left out."""
        value = self._config.get(name)
        if value is not None and not (isinstance(value, list) and all(type(each) is int for each in value)):
            raise ConfigError(f"model.{name}", value, f"should be a list of whole numbers from 0 to {count - 1}")
        return frozenset(value or ())

    def num_labels(self) -> int:
        """`num_labels`, or as many as have a name in `id2label`: two where nothing is said."""
        names = self._config.get("id2label")
        default = len(names) if isinstance(names, dict) and names else DEFAULT_LABELS
        return self.size("num_labels", default=default)

    def refuse(self, name: str, why: str) -> None:
        """Refuse a feature that is switched on."""
        if self._config.get(name):
            raise ConfigError(f"model.{name}", self._config[name], why)

    def only(self, name: str, value: Any) -> None:
        """Refuse another value than the one that is modelled, the family's default."""
        given = self._config.get(name)
        if given not in (None, value):
            raise ConfigError(f"model.{name}", given, f"is not supported yet; should be {json.dumps(value)}")


def _whole_number(name: str, value: Any, smallest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= LARGEST_SIZE:
        raise ConfigError(f"model.{name}", value, f"should be a whole number from {smallest} to {LARGEST_SIZE:,}")
    return value


def even(name: str, size: int) -> int:
    """`size`, which rotary positions turn."""
    if size % 2:
        raise ConfigError(f"model.{name}", size, "should be even: rotary positions turn pairs of its elements")
    return size


def divides(small_name: str, small: int, large_name: str, large: int) -> None:
    if large % small:
        raise ConfigError(f"model.{small_name}", small, f"should divide {large_name} = {large}")
