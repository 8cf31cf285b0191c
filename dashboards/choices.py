"""The catalogue as a form offers it: models with what helps to choose among them, GPUs by vendor and use."""

from collections.abc import Iterator
from functools import cache
from itertools import groupby

from calc import gpus, models
from calc.catalogue import CatalogueModel
from calc.hardware import Segment
from calc.units import GIB, format_count


@cache
def model_choices() -> tuple[tuple[str, str], ...]:
    """Each model's name with what a browser shows beside it: its published size, and the hub id that may be typed."""
    return tuple((model.name, " · ".join(_beside(model))) for model in models())


def _beside(model: CatalogueModel) -> Iterator[str]:
    if model.published_parameters is not None:
        yield format_count(model.published_parameters.total)
    yield from model.hub_ids[:1]


@cache
def gpu_choices() -> tuple[tuple[str, Segment, tuple[tuple[str, str], ...]], ...]:
    """Groups of GPUs in the catalogue's order: vendor, what they are sold for, and each one's name and label."""
    return tuple(
        (vendor, segment, tuple((gpu.name, f"{gpu.name} · {gpu.memory_bytes // GIB} GiB") for gpu in group))
        for (vendor, segment), group in groupby(gpus(), key=lambda gpu: (gpu.vendor, gpu.segment))
    )
