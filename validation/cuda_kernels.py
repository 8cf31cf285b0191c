"""Where CUDA's kernels keep other tensors than fake CPU tensors show: corrections for the tracer (torch 2.13.0)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch.overrides import TorchFunctionMode
from transformers.integrations.sdpa_attention import repeat_kv, use_gqa_in_sdpa
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from calc.errors import ConfigError
from validation.autocast import autocast_inputs

aten = torch.ops.aten

TRACED_FLASH = "traced_sdpa"
"""transformers' sdpa attention with CUDA's flash kernel; a name with "flash" would make it look for other kernels."""

HEAD_SIZE_MULTIPLE = 8
"""scaled_dot_product_attention pads head sizes to it before the flash kernel (sdp `pad_last_dim<8>`)."""
FLASH_SEQUENCE_BLOCK = 128
"""flash_api.cpp mha_bwd rounds sequence lengths up to it."""
FLASH_HEAD_BLOCK, FLASH_HEAD_LIMIT, FLASH_HEAD_LARGEST = 32, 224, 256
"""mha_bwd rounds head sizes up to the first; from the second on it takes the third."""


class CudaFunctions(TorchFunctionMode):
    """Sends composite functions down the branch they take for CUDA tensors, with the inputs CUDA's autocast makes."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = autocast_inputs(func, args, kwargs or {})
        if func is torch.nn.functional.dropout:
            return fused_dropout(*args, **kwargs)
        if func in (torch.nn.functional.softmax, torch.Tensor.softmax):
            return softmax(func, *args, **kwargs)
        return func(*args, **kwargs)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], CudaFunctions]:
    """The autograd engine drops function modes: a checkpoint's recomputation needs its own."""
    return nullcontext(), CudaFunctions()


def fused_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """CUDA's dropout kernel keeps a bool mask; the CPU's composite one keeps a mask of the input's type."""
    if training and 0 < p < 1:
        return torch.native_dropout(input, p, True)[0]
    return aten.dropout(input, p, training)


def softmax(func: Callable[..., torch.Tensor], input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """On CUDA a softmax of fp16 values into fp32 is one kernel, without an fp32 copy of its input (SoftMax.cpp)."""
    if input.dtype is torch.float16 and kwargs.get("dtype") is torch.float32:
        return aten._softmax(input, kwargs["dim"] if "dim" in kwargs else args[0], True)
    return func(input, *args, **kwargs)


def traced_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa_attention_forward, its scaled_dot_product_attention being the flash kernel."""
    if attention_mask is not None:
        raise ConfigError("attention", "flash", "the kernel takes no mask, which this model makes (sliding_window)")
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1 and not use_gqa_in_sdpa(attention_mask, key, value):
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    causal = causal and query.shape[2] > 1
    output = flash_attention(query, key, value, dropout, causal, scaling)
    return output.transpose(1, 2).contiguous(), None


def flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, causal: bool, scale: float | None
) -> torch.Tensor:
    """scaled_dot_product_attention with CUDA's flash kernel: cast by autocast, padded, attended, cut."""
    head_size = query.shape[-1]
    scale = head_size**-0.5 if scale is None else scale
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(low), key.to(low), value.to(low)
    if padding := -head_size % HEAD_SIZE_MULTIPLE:
        query, key, value = (torch.nn.functional.pad(x, (0, padding)) for x in (query, key, value))
    output = aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, scale=scale)[0]
    return output[..., :head_size] if padding else output


ALL_ATTENTION_FUNCTIONS.register(TRACED_FLASH, traced_sdpa)
ALL_MASK_ATTENTION_FUNCTIONS.register(TRACED_FLASH, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def cuda_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], in_engine: bool) -> Any:
    """`func` called as CUDA would: the engine's sums of gradients in place, layer norm statistics in fp32."""
    if in_engine and func is aten.add.Tensor and can_accumulate_in_place(*args):
        return args[0].add_(args[1])
    out = func(*args, **kwargs)
    if func is aten.native_layer_norm.default and out[1].dtype is not torch.float32:
        # CUDA's kernel keeps mean and rstd in its accumulation type (layer_norm_kernel.cu, acc_type).
        return out[0], out[1].to(torch.float32), out[2].to(torch.float32)
    return out


BUFFERED_TENSOR_USES = 4
"""Tensor._use_count() of an engine buffer's only tensor, seen from inside a dispatch mode."""
UNSHARED_STORAGE_USES = 2
"""_storage_Use_Count of a storage with one tensor, plus the Python object that asks."""


def can_accumulate_in_place(first: Any, second: Any, *others: Any) -> bool:
    """Whether the engine would add `second` into `first` (input_buffer.cpp, can_accumulate_inplace).

    It never does under a dispatch mode or for tensor subclasses. Without them it does when the buffer holds the last
    reference to the tensor and to its storage. The gradient of a view keeps its base alive, so it is not added to.
    """
    return (
        isinstance(second, torch.Tensor)
        and first.shape == second.shape
        and first._use_count() <= BUFFERED_TENSOR_USES
        and torch._C._storage_Use_Count(first.untyped_storage()._cdata) <= UNSHARED_STORAGE_USES
        and is_non_overlapping_and_dense_or_false(first)
    )


def hidden_workspace_bytes(func: Any, args: tuple[Any, ...]) -> list[int]:
    """Bytes of each tensor that CUDA's kernel for `func` allocates inside and frees before it returns (mha_bwd)."""
    if func is not aten._scaled_dot_product_flash_attention_backward.default:
        return []
    grad_out, query, key, _, out = args[:5]
    batch, heads, sequence, head_size = query.shape
    rounded_sequence = round_up(sequence, FLASH_SEQUENCE_BLOCK)
    rounded_head = round_up(head_size, FLASH_HEAD_BLOCK)
    rounded_head = rounded_head if rounded_head < FLASH_HEAD_LIMIT else FLASH_HEAD_LARGEST
    softmax_d = 4 * batch * heads * rounded_sequence
    dq_accumulator = 4 * batch * rounded_sequence * heads * rounded_head
    copies = [x.nbytes for x in (grad_out, out) if not x.transpose(1, 2).is_contiguous()]
    expanded = query.element_size() * batch * key.shape[2] * heads * head_size  # dk, dv of every query head
    return [*copies, softmax_d, dq_accumulator, *([expanded] * 2 if key.shape[1] != heads else [])]


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
