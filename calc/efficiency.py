"""How much of a GPU's datasheet peaks an operation reaches: assumed here, in one place, until operators are recorded.

Compute: the fastest bf16 product that was found on the GPU (Stas Bekman, ml-engineering, compute/accelerator/README.md
at 744d01e, "Maximum Achievable Matmul FLOPS"; mean of 100 runs); smaller products reach less. Memory: the share that
NVIDIA's aiconfigurator takes for every GPU (mem_bw_empirical_scaling_factor in its systems/*.yaml at 095f58a, there
called a correction from observations).
"""

from typing import NamedTuple

from .dtype import DType
from .hardware import Gpu

ACHIEVED_BF16_FLOPS_PER_SECOND = {
    "gaudi2-96gb": 418.7e12,
    "a100-sxm-80gb": 271.2e12,
    "a100-sxm-40gb": 271.2e12,
    "gh200-96gb": 828.6e12,
    "a100-pcie-80gb": 252.9e12,
    "a100-pcie-40gb": 252.9e12,
    "h100-sxm-80gb": 794.5e12,
    "h200-sxm-141gb": 794.5e12,
    "b300-sxm-288gb": 1769.0e12,
    "b200-sxm-180gb": 1745.0e12,
    "gaudi3-128gb": 1243.0e12,
    "gb200-186gb": 1822.0e12,
    "mi355x-288gb": 1565.0e12,
    "mi325x-256gb": 784.9e12,
    "mi300x-192gb": 668.4e12,
}
"""By the catalogue's names. The table's H100 stands for the H200, too, as it says; its A100s for both memories."""

OTHER_GPUS_COMPUTE_SHARE = 0.8
"""Of GPUs that the table does not have: the middle of its NVIDIA rows, 0.73 to 0.87."""
MEMORY_SHARE = 0.8


class Reachable(NamedTuple):
    """What operations on one GPU reach, and of which share of the datasheet's figures that is."""

    flops_per_second: float
    bytes_per_second: float
    compute_share: float
    memory_share: float

    @property
    def ridge_flops_per_byte(self) -> float:
        """The arithmetic intensity from which on products wait for the multiprocessors, not for memory."""
        return self.flops_per_second / self.bytes_per_second


def reachable(gpu: Gpu, dtype: DType) -> Reachable | None:
    """What products of `dtype` reach on `gpu`; None where no peak is published for it."""
    peak = gpu.dense_flops_per_second.get(dtype.label)
    if peak is None:
        return None
    compute_share = OTHER_GPUS_COMPUTE_SHARE
    bf16_peak = gpu.dense_flops_per_second["bf16"]
    if gpu.name in ACHIEVED_BF16_FLOPS_PER_SECOND and bf16_peak is not None:
        compute_share = ACHIEVED_BF16_FLOPS_PER_SECOND[gpu.name] / bf16_peak
    return Reachable(
        flops_per_second=peak * compute_share,
        bytes_per_second=gpu.memory_bandwidth_bytes_per_second * MEMORY_SHARE,
        compute_share=compute_share,
        memory_share=MEMORY_SHARE,
    )
