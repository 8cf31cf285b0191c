"""What the driver says of the GPU: NVML, the library behind nvidia-smi. The only module that asks it."""

from typing import Any

import pynvml
from torch.cuda import _get_nvml_device_index

FIRST_DEVICE = 0


def device() -> Any:
    """The GPU that torch calls cuda:0, with CUDA_VISIBLE_DEVICES taken into account; asking makes no CUDA context."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(_get_nvml_device_index(FIRST_DEVICE))


def used_bytes() -> int:
    """Memory in use by all processes, what the driver keeps for itself left out: what nvidia-smi shows."""
    return _memory().used


def total_bytes() -> dict[str, int]:
    memory = _memory()
    return {"total_bytes": memory.total, "reserved_by_driver_bytes": memory.reserved}


def driver_version() -> str:
    pynvml.nvmlInit()
    return pynvml.nvmlSystemGetDriverVersion()


def sm_clock_mhz() -> int:
    """The clock of the streaming multiprocessors at this moment."""
    return pynvml.nvmlDeviceGetClockInfo(device(), pynvml.NVML_CLOCK_SM)


def max_sm_clock_mhz() -> int:
    return pynvml.nvmlDeviceGetMaxClockInfo(device(), pynvml.NVML_CLOCK_SM)


def _memory() -> Any:
    return pynvml.nvmlDeviceGetMemoryInfo(device(), version=pynvml.nvmlMemory_v2)
