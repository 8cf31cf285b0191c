"""Which kernel scaled_dot_product_attention takes, and the room the kernels take, against their source by hand."""

import pytest

from calc.architecture import Layer
from calc.dtype import DType
from calc.hf_config import architecture
from calc.kernels import (
    OBSTACLES,
    accumulates_output,
    efficient_workspace_floats,
    flash_head,
    layer_kernel,
    needs_mask,
    repeats_heads,
)
from calc.scenario import Attention

BF16, FP16, FP32 = DType.BF16, DType.FP16, DType.FP32
AUTO, FLASH, EFFICIENT, MATH = Attention.AUTO, Attention.FLASH, Attention.EFFICIENT, Attention.MATH
LENGTH, WINDOW = 64, 64


def layer(head_dim: int = 64, key_value_heads: int = 4, window: int | None = None) -> Layer:
    config = {"model_type": "mistral", "head_dim": head_dim, "num_attention_heads": 4, "sliding_window": window}
    return architecture(config | {"num_key_value_heads": key_value_heads}).layers[0][0]


@pytest.mark.parametrize(
    ("of", "dtype", "kernel"),
    [
        (layer(), BF16, FLASH),
        (layer(key_value_heads=2), FP16, FLASH),
        (layer(100), BF16, FLASH),  # padded
        (layer(256), BF16, FLASH),
        (layer(260), BF16, MATH),
        (layer(264), BF16, EFFICIENT),
        (layer(264, key_value_heads=2), BF16, EFFICIENT),  # transformers repeats heads of this size
        (layer(window=WINDOW), BF16, EFFICIENT),
        (layer(window=WINDOW, key_value_heads=2), BF16, EFFICIENT),  # and those that go with a mask
        (layer(100, window=WINDOW), BF16, MATH),
        (layer(), FP32, EFFICIENT),
        (layer(key_value_heads=2), FP32, MATH),
        (layer(100), FP32, EFFICIENT),
        (layer(102), FP32, MATH),
    ],
)
def test_auto_is_the_first_kernel_that_takes_the_layer(of: Layer, dtype: DType, kernel: Attention) -> None:
    assert layer_kernel(AUTO, of, LENGTH, dtype) is kernel
    earlier = list(OBSTACLES)[: list(OBSTACLES).index(kernel)]
    assert all(OBSTACLES[each](of, LENGTH, dtype) for each in earlier)


def test_what_was_asked_for_is_taken() -> None:
    assert layer_kernel(MATH, layer(), LENGTH, BF16) is MATH


def test_a_window_longer_than_the_sequence_needs_no_mask() -> None:
    assert [needs_mask(layer(window=window), LENGTH) for window in (None, LENGTH + 1, LENGTH)] == [False, False, True]


def test_heads_are_repeated_where_no_kernel_could_be_asked_to() -> None:
    repeats = [
        repeats_heads(layer(head_dim, key_value_heads, window), LENGTH)
        for head_dim, key_value_heads, window in ((64, 2, None), (64, 2, WINDOW), (258, 2, None), (258, 4, WINDOW))
    ]
    assert repeats == [False, True, True, False]


@pytest.mark.parametrize(("head_dim", "rounded"), [(1, 32), (32, 32), (33, 64), (192, 192), (193, 256), (256, 256)])
def test_flash_rounds_heads_up(head_dim: int, rounded: int) -> None:
    assert flash_head(head_dim) == rounded


@pytest.mark.parametrize(
    ("length", "head_dim", "num_heads", "dtype", "floats"),
    [
        # tiles of q's gradient, a header of 4 floats before each: blocks of queries · blocks of the head
        (64, 64, 1, BF16, 64 * 64 + 4),
        (65, 64, 1, FP32, 2 * (64 * 64 + 4)),
        (128, 128, 1, BF16, 128 * 128 + 4),
        (129, 72, 1, FP16, 2 * (128 * 128 + 4)),
        (128, 128, 1, FP32, 2 * (128 * 64 + 4)),
        (128, 256, 1, FP32, 4 * (128 * 64 + 4)),
        # half-precision heads above 128: k's and v's too, 64 · head to 128, as often as keys are split in 64s ...
        (256, 160, 1, BF16, 2 * 3 * (128 * 64 + 4) + 2 * 4 * 64 * 256),
        # ... but 200 blocks of all heads at most, one at least ...
        (256, 160, 100, BF16, 2 * 3 * (128 * 64 + 4) + 2 * 2 * 64 * 256),
        (256, 160, 201, BF16, 2 * 3 * (128 * 64 + 4) + 2 * 1 * 64 * 256),
        # ... and one of short sequences of many heads.
        (128, 160, 256, BF16, 1 * 3 * (128 * 64 + 4) + 2 * 1 * 64 * 256),
    ],
)
def test_workspace_of_the_efficient_kernel(
    length: int, head_dim: int, num_heads: int, dtype: DType, floats: int
) -> None:
    assert efficient_workspace_floats(length, length, (head_dim, head_dim), num_heads, dtype) == floats


def test_values_with_heads_of_another_size() -> None:
    config = {"model_type": "deepseek_v3", "num_attention_heads": 4, "v_head_dim": 128}
    latent = architecture(config).layers[0][0]
    assert latent.head_dims == (192, 128)
    assert layer_kernel(AUTO, latent, LENGTH, BF16) is EFFICIENT
    same = architecture(config | {"v_head_dim": 192}).layers[0][0]
    assert layer_kernel(AUTO, same, LENGTH, BF16) is FLASH
    odd = architecture(config | {"v_head_dim": 129}).layers[0][0]
    assert layer_kernel(AUTO, odd, LENGTH, BF16) is MATH
    # q's gradient by its own head, k's and v's each by theirs, 64 · head to 128, as often as keys are split in 64s
    floats = 2 * 3 * (128 * 64 + 4) + 4 * 64 * (256 + 128)
    assert efficient_workspace_floats(256, 256, latent.head_dims, 1, BF16) == floats


def test_large_half_precision_outputs_are_collected_in_fp32() -> None:
    assert [accumulates_output(*case) for case in ((128, BF16), (136, BF16), (136, FP32))] == [False, True, False]
