"""Where CUDA's kernels keep other tensors than fake CPU tensors show: corrections for the tracer (torch 2.13.0)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch.overrides import TorchFunctionMode

from calc.scenario import Attention
from validation import sdpa
from validation.autocast import autocast_inputs
from validation.numeric_losses import NUMERIC_LOSSES, NumericLoss
from validation.quick_fakes import call

aten = torch.ops.aten

FLASH_SEQUENCE_BLOCK = 128
"""flash_api.cpp mha_bwd rounds sequence lengths up to it."""
FLASH_HEAD_BLOCK, FLASH_HEAD_LIMIT, FLASH_HEAD_LARGEST = 32, 224, 256
"""mha_bwd rounds head sizes up to the first; from the second on it takes the third."""
EFFICIENT_REGISTER_HEAD = 128
"""kernels/cutlassF.h: the largest head whose output the forward kernel keeps in registers."""
EFFICIENT_KERNELS = {
    True: ((32, 64, 64), (64, 64, 64), (128, 128, 128), (65536, 128, 64)),
    False: ((32, 64, 64), (64, 64, 64), (128, 128, 64), (65536, 128, 64)),
}
"""kernels/cutlassB.h, sm80, of half precision and of fp32: largest head, queries and keys of a tile. Of equal heads the
first, which wants 163 KiB of shared memory at most."""
GRADIENT_TILE_HEADER = 4
"""GradQTempStorage: lock, counter and padding, in floats."""


class CudaFunctions(TorchFunctionMode):
    """Sends composite functions down the branch they take for CUDA tensors, with the inputs CUDA's autocast makes.

    `attention` is the kernel of scaled_dot_product_attention; auto lets each call decide.
    """

    def __init__(self, attention: Attention = Attention.AUTO) -> None:
        super().__init__()
        self.attention = attention

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.cat and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):  # CUDA's does not cast its inputs: the kernel reads any type
                return func(*args, **(kwargs or {}))
        args, kwargs = autocast_inputs(func, args, kwargs or {})
        if func is torch.nn.functional.dropout:
            return fused_dropout(*args, **kwargs)
        if func in (torch.nn.functional.softmax, torch.Tensor.softmax):
            return softmax(func, *args, **kwargs)
        if func is torch.nn.functional.cross_entropy and torch.is_autocast_enabled("cpu"):
            return cross_entropy(*args, **kwargs)
        if func in NUMERIC_LOSSES:
            return NumericLoss.apply(*args[:2], func)
        if func is torch.nn.functional.scaled_dot_product_attention:
            return sdpa.attend(self.attention, *args, **kwargs)
        if func is torch.nn.functional.linear and len(args) == LINEAR_WITH_BIAS and not is_taken_by_addmm(args[0]):
            return linear(*args)
        return func(*args, **kwargs)


LINEAR_WITH_BIAS = 3
"""Its arguments, as nn.Linear gives them: input, weight and the bias."""


def is_taken_by_addmm(input: torch.Tensor) -> bool:
    """Matrices are, however they lie (Linear.cpp)."""
    return input.dim() == 2 or input.is_contiguous()


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Of inputs that no addmm takes the bias is added in place, unless it sees a tensor subclass (Linear.cpp)."""
    product = torch.nn.functional.linear(input, weight)
    return product if bias is None else product.add_(bias)


class RunningAgain(CudaFunctions):
    """The same while a checkpointed region runs again."""

    num_entered = 0

    def __enter__(self) -> "RunningAgain":
        RunningAgain.num_entered += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        RunningAgain.num_entered -= 1
        super().__exit__(*error)


def checkpoint_contexts(
    attention: Attention = Attention.AUTO,
) -> tuple[AbstractContextManager[None], RunningAgain]:
    """The autograd engine drops function modes: a checkpoint's recomputation needs its own."""
    return nullcontext(), RunningAgain(attention)


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


def cross_entropy(
    input: torch.Tensor, target: torch.Tensor, *, label_smoothing: float = 0.0, **options: Any
) -> torch.Tensor:
    """Under CUDA's autocast, which knows nothing of cross_entropy_loss, its two parts keep their own types: log_softmax
    that of the input, which it names, nll_loss fp32 (LossNLL.cpp). The CPU's autocast casts the input."""
    if label_smoothing:
        raise NotImplementedError("label_smoothing under autocast")
    log_probabilities = torch.log_softmax(input, 1, dtype=input.dtype)
    return torch.nn.functional.nll_loss(log_probabilities, target, **options)


IN_PLACE_WITHOUT_SUBCLASSES = {
    aten.index_put.default: aten.index_put_.default,
    aten.scatter.src: aten.scatter_.src,
    aten.scatter_add.default: aten.scatter_add_.default,
}
"""What the gradients of indexing, topk and gather fill their zeros with, unless they see a tensor subclass
(index_backward, value_selecting_reduction_backward in FunctionsManual.cpp, gather_backward in
TensorAdvancedIndexing.cpp)."""
READ_NUMBER = 1.0
"""What `item()` reads of a tensor that has no values: an optimizer scales its update with such numbers."""


def cuda_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], in_engine: bool) -> Any:
    """`func` called as CUDA would: the engine's sums of gradients and indexing's gradient in place, layer norm
    statistics in fp32."""
    if in_engine and func is aten.add.Tensor and can_accumulate_in_place(*args):
        return args[0].add_(args[1])
    if in_engine and func in IN_PLACE_WITHOUT_SUBCLASSES:
        return IN_PLACE_WITHOUT_SUBCLASSES[func](*args, **kwargs)
    if func is aten._local_scalar_dense.default and args[0].constant is None:
        return READ_NUMBER
    if func is aten.nonzero.default:
        return args[0].new_zeros((args[0].numel(), args[0].dim()), dtype=torch.int64)  # no label is left out
    if func is aten._grouped_mm.default:
        return grouped_mm(*args, **kwargs)
    out = call(func, args, kwargs)
    if func is aten.native_layer_norm.default and out[1].dtype is not torch.float32:
        # CUDA's kernel keeps mean and rstd in its accumulation type (layer_norm_kernel.cu, acc_type).
        return out[0], out[1].to(torch.float32), out[2].to(torch.float32)
    if func is aten._scaled_dot_product_efficient_attention.default:
        # seed and offset are host tensors (attention.cu, Note [Seed and Offset Device]): no bytes of the device
        return out[0], out[1], *(torch.empty(0, dtype=torch.int64) for _ in out[2:])
    return out


GROUPED_MM_ALIGNMENT_BYTES = 16
"""Of a row of grouped_mm's matrices (ATen/native/GroupedMMUtils.h)."""


def grouped_mm(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """create_grouped_gemm_output_tensor in GroupedMMUtils.h: [tokens, k] by [experts, k, n], or for the gradient of the
    weights [k, tokens] by [tokens, n]. torch's fake function takes bf16 alone; CUDA's takes fp32 and fp16 too."""
    alignment = GROUPED_MM_ALIGNMENT_BYTES // a.element_size()
    if any(max(matrix.stride()[-2:]) % alignment for matrix in (a, b)):
        raise ValueError("grouped_mm takes rows of multiples of 16 bytes")
    columns = b.shape[-1]
    padded = round_up(columns, alignment)
    if b.dim() == 3:
        return a.new_empty_strided((a.shape[0], columns), (padded, 1))
    groups, rows = offs.shape[0], a.shape[0]
    return a.new_empty_strided((groups, rows, columns), (rows * padded, padded, 1))


FOREACH_CHUNK = 65536
"""kChunkSize in MultiTensorApply.cuh."""
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


def hidden_workspace_bytes(func: Any, args: tuple[Any, ...]) -> list[list[int]]:
    """Bytes of each tensor that CUDA's kernel for `func` allocates inside and frees before it returns: lists of those
    alive together, one after the other."""
    hidden = HIDDEN.get(func)
    copies = [args[index].nbytes for index in READ_IN_ORDER.get(func, ()) if not args[index].is_contiguous()]
    copies += [args[index].nbytes for index in MULTIPLIED.get(func, ()) if not is_matrix_for_cublas(args[index])]
    moments = hidden(*args) if hidden is not None else []
    return [copies + moment for moment in moments] or ([copies] if copies else [])


def is_matrix_for_cublas(x: torch.Tensor) -> bool:
    """prepare_matrix_for_cublas and prepare_batch_matrix_for_cublas in Blas.cpp: rows or columns lie side by side."""
    rows, columns = x.shape[-2:]
    of_row, of_column = x.stride()[-2:]
    by_rows, by_columns = of_column == 1 and of_row >= columns, of_row == 1 and of_column >= rows
    return by_rows or by_columns or (x.is_contiguous() and of_row > 0 and of_column > 0)


def in_flash_backward(
    grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor, *rest: Any
) -> list[list[int]]:
    """mha_bwd in flash_attn/flash_api.cpp."""
    batch, heads, sequence, head_size = query.shape
    rounded_sequence = round_up(sequence, FLASH_SEQUENCE_BLOCK)
    rounded_head = round_up(head_size, FLASH_HEAD_BLOCK)
    rounded_head = rounded_head if rounded_head < FLASH_HEAD_LIMIT else FLASH_HEAD_LARGEST
    softmax_d = 4 * batch * heads * rounded_sequence
    dq_accumulator = 4 * batch * rounded_sequence * heads * rounded_head
    expanded = query.element_size() * batch * key.shape[2] * heads * head_size  # dk, dv of every query head
    copies = copies_by_token(grad_out, out)
    return [[*copies, softmax_d, dq_accumulator, *([expanded] * 2 if key.shape[1] != heads else [])]]


def copies_by_token(*tensors: torch.Tensor) -> list[int]:
    """What is not laid out as [batch, token, head, size] is copied so."""
    return [x.nbytes for x in tensors if not x.transpose(1, 2).is_contiguous()]


def in_efficient_forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> list[list[int]]:
    """attention.cu: an fp32 output of large heads in half precision (kNeedsOutputAccumulatorBuffer)."""
    accumulates = query.element_size() < 4 and max(query.shape[-1], value.shape[-1]) > EFFICIENT_REGISTER_HEAD
    return [[4 * value.shape[-1] * query[..., 0].numel()]] if accumulates else []


def in_efficient_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    *rest: Any,
) -> list[list[int]]:
    """attention_backward.cu: delta, by other operations in fp32; then the kernel's workspace."""
    batch, heads, sequence, _ = query.shape
    delta = 4 * batch * heads * sequence
    copies = copies_by_token(grad_out)
    head_sizes = query.shape[3], value.shape[3]
    workspace = 4 * batch * heads * workspace_floats(sequence, key.shape[2], head_sizes, batch * heads, query.dtype)
    moments = [[*copies, delta, workspace]]
    if query.dtype is torch.float32:
        turned = [delta] if heads > 1 and sequence > 1 else []
        moments.insert(0, [*copies, out.nbytes, delta, *turned])
    return moments


def workspace_floats(
    num_queries: int, num_keys: int, head_sizes: tuple[int, int], num_heads: int, dtype: torch.dtype
) -> int:
    """kernel_backward.h, workspace_strideBH, of the first kernel in kernels/cutlassB.h that takes both head sizes, of
    queries and of values."""
    half = dtype is not torch.float32
    largest, queries, keys = next(kernel for kernel in EFFICIENT_KERNELS[half] if max(head_sizes) <= kernel[0])
    blocks = round_up(num_queries, queries) // queries
    columns = round_up(head_sizes[0], keys) // keys
    for_queries = blocks * columns * (queries * keys + GRADIENT_TILE_HEADER)
    if not half or largest <= queries:
        return for_queries
    splits = round_up(num_keys, keys) // keys
    if num_heads >= 256 and num_keys <= 2 * keys:
        splits = 1
    splits = max(1, min(splits, 200 // num_heads))
    return for_queries + splits * keys * (round_up(head_sizes[0], queries) + round_up(head_sizes[1], queries))


def in_safe_softmax(scores: torch.Tensor, dim: int, *rest: Any) -> list[list[int]]:
    """attention.cpp: which scores are -inf, which rows are so altogether, and the 0 they get."""
    return [[scores.numel(), scores.numel() // scores.shape[dim], scores.element_size()]]


def in_logsumexp(logits: torch.Tensor, *rest: Any) -> list[list[int]]:
    """ReduceOps.cpp, logsumexp_out_impl: the largest values, and the differences to them, exponentiated in place."""
    return [[logits[..., 0].nbytes, logits.nbytes]]


def in_softmax_backward(grad: torch.Tensor, output: torch.Tensor, *rest: Any) -> list[list[int]]:
    """SoftMax.cu, softmax_backward_cuda_out: the gradient times the result. (That of log_softmax has none.)"""
    return [[output.nbytes]]


EMBEDDING_SORTED_FROM = 3073
"""Embedding.cu, embedding_dense_backward_cuda: the fewest indices that are sorted."""
EMBEDDING_ROWS_PER_SUM = 10
"""EmbeddingBackwardKernel.cu, NROWS_PER_THREAD."""


def in_embedding_backward(grad: torch.Tensor, indices: torch.Tensor, num_weights: int, *rest: Any) -> list[list[int]]:
    """EmbeddingBackwardKernel.cu, embedding_backward_cuda_kernel: sums of up to ten rows in fp32, unless there are so
    few different indices that they are added to the weights' gradient at once (use_fused_kernel)."""
    numel, stride = indices.numel(), grad.shape[-1]
    if numel < EMBEDDING_SORTED_FROM:
        return []
    max_segments = min(numel, num_weights)
    max_partial_segment = numel // EMBEDDING_ROWS_PER_SUM + max_segments
    stride_warped = round_up(stride, 32)
    sum_scatter_grid = -(-max_segments * stride_warped // min(stride_warped, 1024))
    if sum_scatter_grid < 1024 and max_partial_segment > sum_scatter_grid * 4:
        return []  # some 60 bytes an index, most of them cub's: docs/cuda_kernels.md
    sort = [8 * numel] * 3  # sorted_indices, orig_indices, segment_offsets
    segments = [8, 8 * max_segments, 8 * max_segments, 8, 8 * max_partial_segment]
    return [[*sort, *segments, 4 * max_partial_segment * stride]]


def in_foreach_norm(tensors: list[torch.Tensor], *rest: Any) -> list[list[int]]:
    """ForeachReduceOp.cu, foreach_tensor_norm_cuda: the norm of each chunk, as many for every tensor."""
    chunks = max(-(-x.numel() // FOREACH_CHUNK) for x in tensors)
    return [[4 * len(tensors) * chunks]]


READ_IN_ORDER = {
    aten.native_layer_norm.default: (0,),
    aten.native_layer_norm_backward.default: (0, 1),
    aten._softmax.default: (0,),
    aten._log_softmax.default: (0,),
    aten._softmax_backward_data.default: (1,),
    aten._log_softmax_backward_data.default: (0, 1),
    aten.nll_loss_forward.default: (0, 1),
    aten.nll_loss_backward.default: (1, 2),
    aten.embedding_dense_backward.default: (0, 1),
    aten.convolution_backward.default: (0,),
}
"""Arguments that the kernels make contiguous (layer_norm_kernel.cu, SoftMax.cu, NLLLoss in Loss.cu, Embedding.cu,
cudnn_convolution_backward in ConvShared.cpp)."""
MULTIPLIED = {
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
}
HIDDEN: dict[Any, Callable[..., list[list[int]]]] = {
    aten._scaled_dot_product_flash_attention_backward.default: in_flash_backward,
    aten._scaled_dot_product_efficient_attention.default: in_efficient_forward,
    aten._scaled_dot_product_efficient_attention_backward.default: in_efficient_backward,
    aten._safe_softmax.default: in_safe_softmax,
    aten.logsumexp.default: in_logsumexp,
    aten.embedding_dense_backward.default: in_embedding_backward,
    aten._softmax_backward_data.default: in_softmax_backward,
    aten.embedding_dense_backward.default: in_embedding_backward,
    aten._foreach_norm.Scalar: in_foreach_norm,
}


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
