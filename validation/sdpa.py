"""scaled_dot_product_attention of CUDA tensors, on fake CPU ones: which kernel takes a call, and what each keeps.

After torch 2.13.0's aten/src/ATen/native/transformers: attention.cpp, cuda/sdp_utils.cpp, cuda/attention.cu,
cuda/attention_backward.cu, on GPUs of compute capability 8.0 and 9.0. That the composite part pads heads to 8 for
flash and an additive mask's rows to 8, and its mathematical form, were also seen to run in torch 2.13.0.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import _CachedTorchDispatchMode, _CachingTorchDispatchMode

from calc.errors import ConfigError
from calc.scenario import Attention

aten = torch.ops.aten

HALF = (torch.float16, torch.bfloat16)
LARGEST_FLASH_HEAD = 256
"""check_head_dim_size_flash."""
FLASH_HEAD_MULTIPLE = 8
"""pad_last_dim in attention.cpp."""
MASK_MULTIPLE = 8
"""preprocess_mask in attention.cpp."""
SELECTING = (_CachingTorchDispatchMode, _CachedTorchDispatchMode)
EFFICIENT_HEAD_BYTES = 16
"""minimum_gemm_alignment: 128 bits."""


def attend(
    asked: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention with `asked` kernel; auto is the first that takes the call."""
    context = nullcontext()
    lower = (query, key, value)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        lower = query.to(dtype), key.to(dtype), value.to(dtype)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
        context = torch.autocast("cpu", enabled=False)
    with context:
        kernel = chosen(asked, *lower, attn_mask, enable_gqa)
        bias = None if attn_mask is None else additive(attn_mask, lower[0].dtype)
        if bias is not None and kernel is Attention.EFFICIENT:
            bias = expanded(bias, lower[0])
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        if kernel is Attention.MATH:
            repeats = query.shape[1] // key.shape[1] if enable_gqa else 1
            return math_attention(*lower, bias, dropout_p, is_causal, factor, repeats)
        return KERNELS[kernel](*lower, bias, dropout_p, is_causal, factor)


def chosen(
    asked: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, enable_gqa: bool = False
) -> Attention:
    """The kernel that takes the call (select_sdp_backend, without cuDNN's)."""
    fits = enable_gqa or query.shape[1] == key.shape[1]  # fused kernels broadcast no heads
    takes = {
        Attention.FLASH: fits and takes_flash(query, value, mask),
        Attention.EFFICIENT: takes_efficient(query, key, value),
        Attention.MATH: True,
    }
    if asked is Attention.AUTO:
        return next(kernel for kernel in takes if takes[kernel])
    if not takes[asked]:
        masked = "without a mask" if mask is None else "with a mask"
        call = f"{query.dtype}, q {list(query.shape)}, k {list(key.shape)}, v {list(value.shape)}, {masked}"
        raise ConfigError("attention", asked.value, f"the kernel does not take {call}; choose auto")
    return asked


def takes_flash(query: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """can_use_flash_attention."""
    same_heads = query.shape[-1] == value.shape[-1] <= LARGEST_FLASH_HEAD
    return mask is None and query.dtype in HALF and same_heads


def takes_efficient(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """can_use_mem_efficient_attention."""
    aligned = all(x.shape[-1] * x.element_size() % EFFICIENT_HEAD_BYTES == 0 for x in (query, value))
    return aligned and query.shape[1] == key.shape[1]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """convert_boolean_attn_mask."""
    if mask.is_floating_point():
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(-torch.inf, dtype=dtype, device=mask.device))


def expanded(bias: Tensor, query: Tensor) -> Tensor:
    """preprocess_mask: rows padded, one mask for all heads."""
    length = bias.shape[-1]
    if padding := -length % MASK_MULTIPLE:
        bias = pad(bias, (0, padding))[..., :length]
    return bias.expand(query.shape[0], query.shape[1], query.shape[2], length)


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: None, dropout_p: float, is_causal: bool, scale: float
) -> Tensor:
    """The flash kernel: heads padded, attended, cut."""
    head_size = query.shape[-1]
    padding = -head_size % FLASH_HEAD_MULTIPLE
    padded = (pad(x, (0, padding)) for x in (query, key, value)) if padding else (query, key, value)
    output = aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, scale=scale)[0]
    return output[..., :head_size] if padding else output


def efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout_p: float, is_causal: bool, scale: float
) -> Tensor:
    """The memory-efficient kernel. It keeps the statistics of softmax if a gradient will want them."""
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    kernel = aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, bias, trains, dropout_p, is_causal, scale=scale)[0]


def math_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float,
    repeats: int = 1,
) -> Tensor:
    """_scaled_dot_product_attention_math, its variables and the order of its operations.

    Called itself it would not add the mask in place under the tracer's dispatch mode, and would take the CPU's dropout.
    """
    dtype, factor = query.dtype, scale**0.5
    query_32, key_32, value_32 = (x.float() if x.dtype in HALF else x for x in (query, key, value))
    scaled = query_32 * factor
    if is_causal:
        triangle = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        bias = additive(triangle, scaled.dtype)
        del triangle
    keys, values = (x if repeats == 1 else x.repeat_interleave(repeats, dim=1) for x in (key_32, value_32))
    weights = torch.matmul(scaled, keys.transpose(-2, -1) * factor)
    if bias is not None:
        weights = weights + bias if under_dispatch_mode() else weights.add_(bias)
    weights = aten._safe_softmax(weights, -1)
    if dropout_p > 0:
        weights = torch.native_dropout(weights, dropout_p, True)[0]
    returned = weights.to(dtype)  # the second result, which the caller drops
    output = torch.matmul(weights, values).to(dtype)
    del returned
    return output


def under_dispatch_mode() -> bool:
    """Whether one of torch's own modes, which select what a checkpoint keeps, sees the operators."""
    return any(isinstance(mode, SELECTING) for mode in _get_current_dispatch_mode_stack())


KERNELS: dict[Attention, Callable[..., Tensor]] = {
    Attention.FLASH: flash_attention,
    Attention.EFFICIENT: efficient_attention,
}
