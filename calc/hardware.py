"""GPUs, and accelerators trained on like them: what a datasheet and a driver say of them.

One entry is what a program sees as one device: MI250 and MI250X are two, a GB200 superchip holds two of its GPUs.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from .catalogue import read_entries, suggestion
from .errors import ConfigError


class Segment(StrEnum):
    """What a GPU is sold for."""

    DATA_CENTRE = "data-centre"
    WORKSTATION = "workstation"
    CONSUMER = "consumer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    name: str
    aliases: tuple[str, ...]
    vendor: str
    segment: Segment
    architecture: str
    compute_capability: str | None
    """CUDA's; none for other vendors."""
    memory_bytes: int
    """The datasheet's GB, read as 2^30 bytes: that is what they hold (nvidia-smi shows 81,920 MiB on an A100 80 GB)."""
    usable_memory_bytes: int | None
    """What a driver reports in all, less than the datasheet's by error correction and what the driver keeps. Changes by
    some MiB from driver to driver; none where no published reading was found."""
    usable_memory_reading: str | None
    """Who reported it: `CUDA`, `HIP` and `OpenCL` mean the total a program can ask for; `nvidia-smi` says up to 2 %
    more."""
    memory_bandwidth_bytes_per_second: int
    dense_flops_per_second: Mapping[str, int | None]
    """Peak by type, without sparsity; 16-bit and fp8 products summed in fp32, as PyTorch does. None: no such unit, or
    not published."""
    num_sms: int | None
    """Streaming multiprocessors, or compute units."""
    l2_bytes: int | None
    shared_memory_per_sm_bytes: int | None
    """The most that blocks on one multiprocessor can hold together; AMD calls it local data share."""
    link_bytes_per_second: Mapping[str, int | None]
    """To other GPUs and the host by `nvlink`, `infinity_fabric`, `roce` and `pcie`: all links of one GPU, both
    directions together, as datasheets round them. None: it has such links, their speed was not found."""
    tdp_watts: int | None
    """Of the whole board, or of a superchip's GPU. None: configured by the system around it."""
    sources: Mapping[str, str]
    """Addresses. `datasheet` gives all that has no entry of its own; `datasheet_read_in` is a copy of its figures."""

    @property
    def capacity_bytes(self) -> int:
        """What a job can fill: as reported by a driver where that is known, else as on the datasheet."""
        return self.memory_bytes if self.usable_memory_bytes is None else self.usable_memory_bytes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@cache
def gpus() -> tuple[Gpu, ...]:
    """All GPUs of the catalogue, by vendor and generation, newest first."""
    return tuple(_gpu(name, **entry) for name, entry in read_entries("gpus.json").items())


def gpu_named(name: str) -> Gpu:
    """The GPU with this name or alias, in any case; raises ConfigError with the nearest names when there is none."""
    known = _gpus_by_name()
    if name.lower() not in known:
        suggested = suggestion(name, {each: gpu.name for each, gpu in known.items()})
        raise ConfigError("gpu", name, f"not in the catalogue{suggested} (`gpucalc gpus` lists them)")
    return known[name.lower()]


@cache
def _gpus_by_name() -> dict[str, Gpu]:
    return {name: gpu for gpu in gpus() for name in (gpu.name, *gpu.aliases)}


def _gpu(name: str, aliases: list[str], segment: str, **fields: Any) -> Gpu:
    return Gpu(name=name, aliases=tuple(aliases), segment=Segment(segment), **fields)
