"""Which kernel scaled_dot_product_attention takes for a layer, and the sizes its temporaries are rounded up to.

torch 2.13.0, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, as it decides on GPUs of compute capability 8.0 and
9.0. Left out: cuDNN's kernel, whose workspace no source tells.
"""

from collections.abc import Callable

from .architecture import Layer
from .dtype import DType
from .kinds import SharedHeads
from .scenario import Attention

FLASH_LARGEST_HEAD = 256
"""check_head_dim_size_flash. transformers asks for grouped heads up to the same size (use_gqa_in_sdpa)."""
HEAD_MULTIPLE = 8
"""scaled_dot_product_attention pads other head sizes for flash (pad_last_dim in attention.cpp)."""
EFFICIENT_HEAD_MULTIPLES = {DType.FP32: 4, DType.BF16: HEAD_MULTIPLE, DType.FP16: HEAD_MULTIPLE}
"""minimum_gemm_alignment: 16 bytes."""
FP8_INPUTS_PER_SCALE = 128
"""Of a row, where DeepGEMM and vLLM's blocks of fp8 cast the input of a product."""
MASK_MULTIPLE = 8
"""preprocess_mask in attention.cpp pads an additive mask's rows to it."""
BIAS_GRADIENT_MULTIPLE = 16
"""attention_backward.cu rounds the rows of an additive mask's gradient up to it."""
STATISTICS_BLOCK = 32
"""kAlignLSE in mem_eff_attention/kernel_forward.h."""

FLASH_SEQUENCE_BLOCK = 128
FLASH_HEAD_BLOCK = 32
FLASH_HEAD_LIMIT, FLASH_HEAD_LARGEST = 224, 256
"""What flash_api.cpp's mha_bwd rounds its temporaries' sizes up to; from the limit on heads take the largest."""


def needs_mask(layer: Layer, sequence_length: int) -> bool:
    """A window that is not longer than the sequence needs a mask, and so do keys before the text's, unless it is of one
    token (_ignore_causal_mask_sdpa in transformers)."""
    if layer.num_places and sequence_length == 1:
        return True  # transformers skips no mask of a static cache while decoding (is_compileable)
    num_keys = sequence_length + layer.num_prefix_tokens
    slides = layer.sliding_window is not None and num_keys >= layer.sliding_window
    has_prefix = layer.num_prefix_tokens > 0 and not layer.num_places
    return layer.kind.always_masked or slides or (has_prefix and sequence_length > 1)


def repeats_heads(layer: Layer, sequence_length: int) -> bool:
    """transformers repeats keys and values beforehand, as eager attention does; else the kernel gets fewer heads."""
    return _leaves_groups(layer, sequence_length) and sequence_length > 1


def packs_heads(layer: Layer, sequence_length: int) -> bool:
    """transformers makes the query heads that share keys and values queries of one head (pack_gqa)."""
    return _leaves_groups(layer, sequence_length) and sequence_length == 1


def _leaves_groups(layer: Layer, sequence_length: int) -> bool:
    """The kernel is asked for no groups of heads (use_gqa_in_sdpa)."""
    query_dim, value_dim = layer.head_dims
    takes_groups = query_dim == value_dim <= FLASH_LARGEST_HEAD and not needs_mask(layer, sequence_length)
    return is_grouped(layer) and layer.kind.shared_heads is SharedHeads.REPEATED and not takes_groups


def is_grouped(layer: Layer) -> bool:
    """The attention core gets fewer key/value heads than query heads."""
    fewer = layer.num_key_value_heads < layer.num_attention_heads
    return fewer and layer.kind.shared_heads is not SharedHeads.EXPANDED


def kernel_obstacle(kernel: Attention, layer: Layer, sequence_length: int, dtype: DType) -> str | None:
    """Why a kernel of scaled_dot_product_attention does not take a layer, or None."""
    if layer.kind.soft_capped:
        return "scaled_dot_product_attention caps no scores, as this model does: transformers runs it with eager only"
    if layer.kind.sinks:
        return "scaled_dot_product_attention has no sinks, as this model has: transformers runs it with eager only"
    return OBSTACLES[kernel](layer, sequence_length, dtype)


def _flash_obstacle(layer: Layer, sequence_length: int, dtype: DType) -> str | None:
    if dtype is DType.FP32:
        return "the flash kernel takes fp16 and bf16, not precision = fp32"
    if layer.head_dim > FLASH_LARGEST_HEAD:
        return f"the flash kernel takes head sizes up to {FLASH_LARGEST_HEAD}, not {layer.head_dim}"
    if layer.kind.position_bias is not None:
        return "the bias of positions needs a mask, which the flash kernel does not take"
    query_dim, value_dim = layer.head_dims
    if query_dim != value_dim:
        return f"the flash kernel takes one head size for queries and values, not {query_dim} and {value_dim}"
    if layer.num_places and sequence_length == 1:
        return "a static cache's tokens need a mask, which the flash kernel does not take"
    if layer.num_prefix_tokens and not layer.num_places and sequence_length > 1:
        return "keys before the text's need a mask, which the flash kernel does not take"
    if layer.kind.always_masked:
        return "this model always gives its attention a mask, which the flash kernel does not take"
    if needs_mask(layer, sequence_length):
        return f"a sliding window of {layer.sliding_window} tokens needs a mask, which the flash kernel does not take"
    return None


def _efficient_obstacle(layer: Layer, sequence_length: int, dtype: DType) -> str | None:
    multiple = EFFICIENT_HEAD_MULTIPLES[dtype]
    for head_dim in layer.head_dims:
        if head_dim % multiple:
            sizes = f"head sizes that are multiples of {multiple} in {dtype.label}"
            return f"the efficient kernel takes {sizes}, not {head_dim}"
    if is_grouped(layer) and not _leaves_groups(layer, sequence_length):
        return (
            f"the efficient kernel takes as many key/value heads as query heads, "
            f"not {layer.num_key_value_heads} for {layer.num_attention_heads}"
        )
    return None


def _math_obstacle(layer: Layer, sequence_length: int, dtype: DType) -> str | None:
    if layer.kind.position_bias is not None:
        return "the math kernel is not modelled yet with a bias of positions"
    return None


OBSTACLES: dict[Attention, Callable[[Layer, int, DType], str | None]] = {
    Attention.FLASH: _flash_obstacle,
    Attention.EFFICIENT: _efficient_obstacle,
    Attention.MATH: _math_obstacle,
}
"""Why a kernel does not take a layer; in the order in which they are tried."""


def layer_kernel(attention: Attention, layer: Layer, sequence_length: int, dtype: DType) -> Attention:
    """What `attention` means for one layer: auto is the first kernel that takes it."""
    if (layer.kind.soft_capped or layer.kind.sinks) and attention is Attention.AUTO:
        return Attention.EAGER
    if attention is not Attention.AUTO:
        return attention
    return next(kernel for kernel, obstacle in OBSTACLES.items() if obstacle(layer, sequence_length, dtype) is None)


def flash_head(head_dim: int) -> int:
    """mha_bwd's rounded head size."""
    rounded = round_up(head_dim, FLASH_HEAD_BLOCK)
    return rounded if rounded < FLASH_HEAD_LIMIT else FLASH_HEAD_LARGEST


ACCUMULATED_HEAD = 128
"""Above it the efficient kernel collects its half-precision output in fp32 (kNeedsOutputAccumulatorBuffer)."""


def accumulates_output(head_dim: int, dtype: DType) -> bool:
    """The efficient kernel's forward takes room for an fp32 output (mem_eff_attention/kernel_forward.h)."""
    return dtype is not DType.FP32 and head_dim > ACCUMULATED_HEAD


MOST_SPLITS = 200
"""Blocks of all heads together, where a split over keys needs room of its own."""
MANY_HEADS = 256
TILE_HEADER = 4
"""A lock, a counter and padding before each tile (GradQTempStorage), in floats."""


def efficient_workspace_floats(
    num_queries: int, num_keys: int, head_dims: tuple[int, int], num_heads: int, dtype: DType
) -> int:
    """Room of one head in the workspace of the efficient kernel's backward; `head_dims` are those of queries and
    values, `num_heads` counts the heads of all sequences.

    mem_eff_attention/kernel_backward.h, workspace_strideBH: tiles that collect the gradient of q, and, where they do
    not fit into registers, those of k and v. The first tile sizes of kernels/cutlassB.h that fit a head, as on GPUs
    whose blocks have 163 KiB of shared memory (compute capability 8.0, 9.0, 10.0).
    """
    queries, keys, in_registers = _efficient_tiles(max(head_dims), dtype)
    tiles = _blocks(num_queries, queries) * _blocks(head_dims[0], keys)
    floats = tiles * (queries * keys + TILE_HEADER)
    if not in_registers:
        splits = _blocks(num_keys, keys)
        if num_heads >= MANY_HEADS and splits <= 2:
            splits = 1
        splits = max(min(splits, MOST_SPLITS // num_heads), 1)
        floats += splits * keys * sum(round_up(head_dim, queries) for head_dim in head_dims)
    return floats


def fewer_splits(layer: Layer) -> set[int]:
    """The numbers of sequences from which on that workspace may be split into fewer parts."""
    if max(layer.head_dims) <= ACCUMULATED_HEAD:
        return set()
    return {MOST_SPLITS // splits // layer.num_attention_heads + 1 for splits in range(1, MOST_SPLITS + 1)}


def _efficient_tiles(head_dim: int, dtype: DType) -> tuple[int, int, bool]:
    """Queries and keys of a tile, and whether k's and v's gradients need no room (fp32 ones are their own)."""
    if head_dim <= 64:
        return 64, 64, True
    if dtype is DType.FP32:
        return 128, 64, True
    return (128, 128, True) if head_dim <= 128 else (128, 64, False)


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return _blocks(size, multiple) * multiple
