"""The kernels that scaled_dot_product_attention can be restricted to. Needs torch alone."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""By the Scenario's names."""


def restricted_to(attention: str) -> AbstractContextManager[Any]:
    """scaled_dot_product_attention with one backend only, where `attention` names one."""
    return sdpa_kernel(BACKENDS[attention]) if attention in BACKENDS else nullcontext()
