"""The catalogue's lists, filtered and sorted: the same on the command line and over HTTP."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

from .architecture import Architecture
from .catalogue import CatalogueModel, models
from .errors import ConfigError
from .estimation import estimate
from .hardware import Gpu, Segment, gpus
from .model_source import catalogue_architecture
from .scenario import Question, Scenario
from .units import COUNT_UNITS, GB, GIB

Row = TypeVar("Row")
Listing = TypeVar("Listing", bound=Question)


class ModelColumn(StrEnum):
    NAME = "name"
    FAMILY = "family"
    PARAMETERS = "parameters"
    NUM_LAYERS = "num_layers"
    HIDDEN_SIZE = "hidden_size"
    MAX_POSITION_EMBEDDINGS = "max_position_embeddings"


class GpuColumn(StrEnum):
    NAME = "name"
    VENDOR = "vendor"
    MEMORY = "memory"
    BANDWIDTH = "bandwidth"
    BF16 = "bf16"
    NUM_SMS = "num_sms"
    TDP = "tdp"


def _count(text: object) -> object:
    """`7B`, `1.5 b` and `350M` as numbers; what is none is left for the message."""
    if not isinstance(text, str):
        return text
    units = {unit: size for size, unit in COUNT_UNITS}
    number, size = text.strip(), 1
    if number[-1:].upper() in units:
        number, size = number[:-1], units[number[-1].upper()]
    try:
        return float(number) * size
    except ValueError:
        return text


Count = Annotated[float, BeforeValidator(_count), Field(ge=0, allow_inf_nan=False)]
Quantity = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ModelListing(Question):
    """Which models of the catalogue, in what order."""

    name: str | None = None
    """Part of a name, an alias or a hub id, in any case."""
    family: str | None = None
    """The config's model_type."""
    min_parameters: Count | None = None
    """At least so many parameters: 7000000000 or 7B."""
    max_parameters: Count | None = None
    """At most so many parameters."""
    sort: ModelColumn | None = None
    """By which column; none = families together."""
    descending: bool = False
    """The largest first."""


class GpuListing(Question):
    """Which GPUs of the catalogue, in what order."""

    name: str | None = None
    """Part of a name or an alias, in any case."""
    vendor: str | None = None
    """Who makes it."""
    segment: Segment | None = None
    """What it is sold for."""
    min_memory_gib: Quantity | None = None
    """At least so much memory by its datasheet, in GiB."""
    max_memory_gib: Quantity | None = None
    """At most so much memory by its datasheet, in GiB."""
    min_bandwidth_gb_per_second: Quantity | None = None
    """At least this memory bandwidth, in GB (10^9) a second."""
    max_bandwidth_gb_per_second: Quantity | None = None
    """At most this memory bandwidth, in GB (10^9) a second."""
    sort: GpuColumn | None = None
    """By which column; none = vendors and segments together, the newest first."""
    descending: bool = False
    """The largest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """A model with what can be computed of it."""

    model: CatalogueModel
    architecture: Architecture
    parameters: int

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def family(self) -> str:
        return self.architecture.model_type

    def to_dict(self) -> dict[str, Any]:
        return self.model.to_dict() | {"family": self.family, "parameters": self.parameters}


MODEL_VALUES: Mapping[ModelColumn, Callable[[ListedModel], str | int]] = {
    ModelColumn.NAME: lambda row: row.name,
    ModelColumn.FAMILY: lambda row: row.family,
    ModelColumn.PARAMETERS: lambda row: row.parameters,
    ModelColumn.NUM_LAYERS: lambda row: row.architecture.num_layers,
    ModelColumn.HIDDEN_SIZE: lambda row: row.architecture.hidden_size,
    ModelColumn.MAX_POSITION_EMBEDDINGS: lambda row: row.architecture.max_position_embeddings,
}
GPU_VALUES: Mapping[GpuColumn, Callable[[Gpu], str | int | None]] = {
    GpuColumn.NAME: lambda gpu: gpu.name,
    GpuColumn.VENDOR: lambda gpu: gpu.vendor,
    GpuColumn.MEMORY: lambda gpu: gpu.memory_bytes,
    GpuColumn.BANDWIDTH: lambda gpu: gpu.memory_bandwidth_bytes_per_second,
    GpuColumn.BF16: lambda gpu: gpu.dense_flops_per_second["bf16"],
    GpuColumn.NUM_SMS: lambda gpu: gpu.num_sms,
    GpuColumn.TDP: lambda gpu: gpu.tdp_watts,
}


def listing_from_strings(kind: type[Listing], items: Iterable[tuple[str, str]]) -> Listing:
    """The listing written as (field, text) pairs: a query string, command-line flags."""
    fields: dict[str, str] = {}
    for name, text in items:
        if name in fields:
            raise ConfigError(name, text, "is given twice")
        fields[name] = text
    return kind.model_validate(fields)


def list_models(listing: ModelListing) -> list[ListedModel]:
    """The models `listing` asks for. Raises ConfigError for a family that none has."""
    _check_known("family", listing.family, {row.family for row in _all_models()})
    chosen = [
        row
        for row in _all_models()
        if _has_name(listing.name, (row.name, *row.model.aliases, *row.model.hub_ids))
        and _is(listing.family, row.family)
        and _within(row.parameters, listing.min_parameters, listing.max_parameters)
    ]
    return _ordered(chosen, listing, MODEL_VALUES)


def list_gpus(listing: GpuListing) -> list[Gpu]:
    """The GPUs `listing` asks for. Raises ConfigError for a vendor that none has."""
    _check_known("vendor", listing.vendor, {gpu.vendor for gpu in gpus()})
    chosen = [
        gpu
        for gpu in gpus()
        if _has_name(listing.name, (gpu.name, *gpu.aliases))
        and _is(listing.vendor, gpu.vendor)
        and listing.segment in (None, gpu.segment)
        and _within(gpu.memory_bytes / GIB, listing.min_memory_gib, listing.max_memory_gib)
        and _within(
            gpu.memory_bandwidth_bytes_per_second / GB,
            listing.min_bandwidth_gb_per_second,
            listing.max_bandwidth_gb_per_second,
        )
    ]
    return _ordered(chosen, listing, GPU_VALUES)


@cache
def _all_models() -> tuple[ListedModel, ...]:
    return tuple(
        ListedModel(model=model, architecture=catalogue_architecture(model.name), parameters=_parameters(model))
        for model in models()
    )


def _parameters(model: CatalogueModel) -> int:
    """As published, which tests hold equal to the ledger's count; the ledger's where none is published."""
    if model.published_parameters is not None:
        return model.published_parameters.total
    return estimate(Scenario(model=model.name)).parameters.total


def _ordered(
    rows: list[Row], listing: ModelListing | GpuListing, values: Mapping[Any, Callable[[Row], Any]]
) -> list[Row]:
    """Rows without a value come last either way; equal ones stay in the catalogue's order."""
    if listing.sort is None:
        if listing.descending:
            raise ConfigError("descending", True, f"needs sort: {', '.join(values)}")
        return rows
    value = values[listing.sort]
    known = sorted((row for row in rows if value(row) is not None), key=value, reverse=listing.descending)
    return [*known, *(row for row in rows if value(row) is None)]


def _has_name(part: str | None, names: Iterable[str]) -> bool:
    return part is None or any(part.lower() in name.lower() for name in names)


def _is(wanted: str | None, value: str) -> bool:
    return wanted is None or wanted.lower() == value.lower()


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or least <= value) and (most is None or value <= most)


def _check_known(field: str, value: str | None, known: Iterable[str]) -> None:
    by_lower_case = {each.lower(): each for each in known}
    if value is not None and value.lower() not in by_lower_case:
        near = get_close_matches(value.lower(), by_lower_case, n=1)
        hint = f"did you mean {by_lower_case[near[0]]}? " if near else ""
        raise ConfigError(field, value, f"{hint}the catalogue has {', '.join(sorted(by_lower_case.values()))}")
