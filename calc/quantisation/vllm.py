"""How vLLM 0.27.1 keeps quantised matrices once they are loaded, by the kernel that it takes for a GPU.

model_executor/layers/quantization/auto_gptq.py, auto_awq.py and fp8.py; model_executor/kernels/linear/__init__.py (the
order of kernels), mixed_precision/machete.py and marlin.py, scaled_mm/marlin.py; utils/marlin_utils.py and
marlin_utils_fp8.py. Derived, not traced. q, k, v and gate, up are one matrix each, as large as they are apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from calc.dimensions import Blocks
from calc.dtype import DType
from calc.errors import ConfigError
from calc.ledger import Dimension, Tensor
from calc.paging import ASSUMED_SMS, Kernel

from . import forward
from .formats import Format, Matrix, Quantisation, Stored, fp8, packed

if TYPE_CHECKING:
    from calc.hardware import Gpu

HOPPER = 9.0
"""Machete runs on these alone (MacheteLinearKernel.can_implement), and is assumed where no GPU is named."""
OLDEST = 8.0
"""Marlin runs on 7.5, too, in fp16 alone: not built."""
MULTIPLIES_FP8 = 8.9
"""Below it fp8 weights are Marlin's (MarlinFP8ScaledMMLinearKernel.is_supported)."""
GROUP_SIZES = (64, 128)
"""Those that Marlin and Machete both take."""
TILE = (128, 128)
"""Of rows and columns: matrices of other sizes are padded or go to other kernels."""
MERGED = ("k_proj", "v_proj", "up_proj")
"""Part of the matrix that begins with q_proj, or gate_proj."""


class Device(NamedTuple):
    """What the choice of a kernel and its buffers depend on."""

    compute_capability: float
    num_sms: int


InVllm = Callable[[Device], Format]
"""A format on a device."""


@lru_cache(maxsize=64)
def on_device(quantisation: Quantisation, device: Device) -> Quantisation:
    """The same object each time: what is built of it is kept by it."""
    in_vllm = quantisation.format.in_vllm
    assert in_vllm is not None
    return replace(quantisation, format=in_vllm(device))


def device_of(gpu: "Gpu | None") -> Device:
    """Raises ConfigError for a GPU that is not built."""
    if gpu is None:
        return Device(HOPPER, ASSUMED_SMS)
    if gpu.compute_capability is None or float(gpu.compute_capability) < OLDEST:
        problem = f"should have CUDA's compute capability {OLDEST} or more with page_size and quantised weights"
        raise ConfigError("gpu", gpu.name, problem)
    return Device(float(gpu.compute_capability), gpu.num_sms or ASSUMED_SMS)


def gptq(bits: int, group_size: int) -> InVllm:
    """AutoGPTQLinearMethod of symmetric weights, not reordered. Marlin empties zero points and g_idx, Machete leaves
    them where they are; biases that AutoGPTQ added are not loaded."""

    def on(device: Device) -> Format:
        has_machete = device.compute_capability == HOPPER

        def stored(matrix: Matrix) -> Iterator[Tensor]:
            groups = matrix.groups(group_size)
            yield from _codes_and_scales(matrix, bits, groups)
            if has_machete:
                yield matrix.tensor("qzeros", (groups, packed(bits, matrix.rows)), DType.INT32)
            if has_machete and _begins(matrix):
                yield matrix.tensor("g_idx", matrix.columns, DType.INT32)
            if not has_machete:
                yield from _workspace(matrix, device)

        return _format(stored, Kernel.MACHETE if has_machete else Kernel.MARLIN)

    return on


def awq(bits: int, group_size: int) -> InVllm:
    """AutoAWQMarlinLinearMethod: Marlin keeps zero points in `bits`, Machete in the activations' type, scaled."""

    def on(device: Device) -> Format:
        has_machete = device.compute_capability == HOPPER

        def stored(matrix: Matrix) -> Iterator[Tensor]:
            groups = matrix.groups(group_size)
            yield from _codes_and_scales(matrix, bits, groups)
            if has_machete:
                yield matrix.tensor("qzeros", (groups, *matrix.rows), matrix.dtype)
            else:
                yield matrix.tensor("qzeros", (groups, packed(bits, matrix.rows)), DType.INT32)
                yield from _workspace(matrix, device)

        return _format(stored, Kernel.MACHETE if has_machete else Kernel.MARLIN)

    return on


def fp8_blocks(block: tuple[int, int]) -> InVllm:
    """Fp8LinearMethod with block_quant: fp32 scales of blocks; Marlin's are repeated for each row, in the activations'
    type (prepare_fp8_layer_for_marlin)."""
    as_loaded = fp8(block, DType.FP32, static_activations=False)

    def on(device: Device) -> Format:
        def for_marlin(matrix: Matrix) -> Iterator[Tensor]:
            yield matrix.weights("weight", (*matrix.rows, *matrix.columns), DType.FP8)
            scales = (Blocks(matrix.columns, block[1]), *matrix.rows)
            yield matrix.tensor("weight_scale_inv", scales, matrix.dtype)
            yield from _workspace(matrix, device)

        if device.compute_capability < MULTIPLIES_FP8:
            return _format(for_marlin, Kernel.MARLIN)
        return _format(as_loaded, Kernel.FP8)

    return on


def _codes_and_scales(matrix: Matrix, bits: int, groups: Dimension) -> Iterator[Tensor]:
    yield matrix.weights("qweight", (packed(bits, matrix.columns), *matrix.rows), DType.INT32)
    yield matrix.tensor("scales", (groups, *matrix.rows), matrix.dtype)


def _begins(matrix: Matrix) -> bool:
    """What a merged matrix has once comes with the first of its parts."""
    return not matrix.module.endswith(MERGED)


def _workspace(matrix: Matrix, device: Device) -> Iterator[Tensor]:
    """marlin_make_workspace_new: a lock for each multiprocessor."""
    if _begins(matrix):
        yield matrix.tensor("workspace", (device.num_sms,), DType.INT32)


def _format(stored: Stored, kernel: Kernel) -> Format:
    return Format(
        stored=stored,
        forward=forward.as_stored(stored),
        kernel=kernel,
        dtypes=(DType.BF16, DType.FP16),
        group=TILE,
        multiplies_in=DType.FP8 if kernel is Kernel.FP8 else None,
        smallest_compute_capability=OLDEST,
    )
