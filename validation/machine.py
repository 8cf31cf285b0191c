"""The GPU as a worker process finds it, before its first case and between cases."""

import gc
import os
from dataclasses import dataclass
from typing import Any

import torch

from validation import cuda, nvml
from validation.records import installed_versions

SETTINGS = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED",
)
"""Environment variables that change what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One GPU and the libraries that use it."""

    gpu_name: str
    versions: dict[str, str | None]
    used_before_context_bytes: int
    workspaces: dict[str, Any]
    facts: dict[str, Any]

    def own_bytes(self) -> int:
        """What this process takes of the device now, by the driver's count."""
        return nvml.used_bytes() - self.used_before_context_bytes

    def idle(self) -> dict[str, int]:
        """What is left when nothing runs: allocated and reserved by torch, and the context, which grows as kernels are
        first used.

        cuBLAS's workspaces are given back, so that the next step makes them when a plain script's first step would.
        """
        gc.collect()  # a job holds itself in cycles
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved()
        return {
            "allocated_bytes": torch.cuda.memory_allocated(),
            "reserved_bytes": reserved,
            "context_bytes": self.own_bytes() - reserved,
        }


def start() -> Machine:
    """Makes the CUDA context and cuBLAS's workspaces, and sees what they take."""
    before = nvml.used_bytes()
    torch.zeros(1, device="cuda")
    after = nvml.used_bytes()
    reserved = torch.cuda.memory_reserved()
    properties = torch.cuda.get_device_properties(0)
    return Machine(
        gpu_name=properties.name,
        versions={**installed_versions(), "cuda": torch.version.cuda, "driver": nvml.driver_version()},
        used_before_context_bytes=before,
        workspaces=cuda.workspaces(),
        facts={
            "compute_capability": f"{properties.major}.{properties.minor}",
            "usable_memory_bytes": properties.total_memory,
            **nvml.total_bytes(),
            "used_before_context_bytes": before,
            "used_after_context_bytes": after,
            "context_bytes": after - before - reserved,
            "cudnn_version": torch.backends.cudnn.version(),
            "environment": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        },
    )
