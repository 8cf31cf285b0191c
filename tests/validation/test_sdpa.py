"""scaled_dot_product_attention as traced: the choice among kernels, and torch's own mathematical form beside ours."""

from functools import partial
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from calc.errors import ConfigError
from calc.scenario import Attention
from validation.cuda_kernels import CudaFunctions
from validation.sdpa import attend, chosen, math_attention

aten = torch.ops.aten
NUMBER_BYTES = 8
BF16, FP32 = torch.bfloat16, torch.float32
AUTO, FLASH, EFFICIENT, MATH = Attention.AUTO, Attention.FLASH, Attention.EFFICIENT, Attention.MATH
MASK = torch.ones(1, 1, 10, 10, dtype=torch.bool)


def heads(dtype: torch.dtype, num_heads: int = 4, head_size: int = 16, device: str = "meta") -> torch.Tensor:
    values = torch.rand(2, 10, num_heads, head_size, device=device).to(dtype)
    return values.transpose(1, 2).requires_grad_()


@pytest.mark.parametrize(
    ("dtype", "key_heads", "head_size", "mask", "kernel"),
    [
        (BF16, 4, 16, None, FLASH),
        (BF16, 2, 16, None, FLASH),
        (BF16, 4, 20, None, FLASH),
        (BF16, 4, 264, None, EFFICIENT),
        (BF16, 4, 16, MASK, EFFICIENT),
        (BF16, 4, 20, MASK, MATH),
        (FP32, 4, 20, None, EFFICIENT),
        (FP32, 4, 18, None, MATH),
        (FP32, 2, 16, None, MATH),
    ],
)
def test_auto(dtype: torch.dtype, key_heads: int, head_size: int, mask: torch.Tensor | None, kernel: Attention) -> None:
    query, key = heads(dtype, 4, head_size), heads(dtype, key_heads, head_size)
    assert chosen(AUTO, query, key, key, mask, enable_gqa=True) is kernel
    for other in (FLASH, EFFICIENT, MATH):
        if other is kernel or other is MATH:
            assert chosen(other, query, key, key, mask, enable_gqa=True) is other
    if kernel is not FLASH:
        with pytest.raises(ConfigError, match="choose auto"):
            chosen(FLASH, query, key, key, mask, enable_gqa=True)


def test_fused_kernels_broadcast_no_heads() -> None:
    query, key = heads(BF16, 4), heads(BF16, 1)
    assert chosen(AUTO, query, key, key, MASK) is MATH
    assert attend(AUTO, query, key, key, MASK.to("meta")).shape == query.shape


def test_transformers_reaches_it_through_the_function() -> None:
    query = heads(BF16)
    with CudaFunctions(MATH):
        output = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert output.grad_fn is not None
    assert "ToCopy" in output.grad_fn.name()  # back from fp32


@pytest.mark.parametrize(("head_size", "padded"), [(64, 64), (20, 24)])
def test_flash_pads_the_head_size(head_size: int, padded: int) -> None:
    query = heads(BF16, 2, head_size)
    output = attend(FLASH, query, query, query, is_causal=True)
    assert output.shape == query.shape
    assert output.untyped_storage().nbytes() == 2 * 2 * 10 * 2 * padded


def test_efficient_pads_the_rows_of_a_mask() -> None:
    query = heads(FP32)
    output = attend(EFFICIENT, query, query, query, MASK.to("meta"))
    assert output.grad_fn is not None
    bias: Any = getattr(output.grad_fn, "_saved_attn_bias")  # noqa: B009  # pyright: ignore
    assert (bias.shape, bias.untyped_storage().nbytes()) == ((2, 4, 10, 10), 4 * 10 * 16)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_math_is_torchs_own(dtype: torch.dtype, key_heads: int, masked: bool) -> None:
    """The same values, and the same allocations on the same level, forward and backward."""
    results = []
    repeats = 4 // key_heads if key_heads > 1 else 1  # one key/value head is broadcast without enable_gqa
    for math_of in (partial(math_attention, repeats=repeats), partial(torch_math, enable_gqa=repeats > 1)):
        torch.manual_seed(0)
        query, key, value = (heads(dtype, number, device="cpu") for number in (4, key_heads, key_heads))
        bias = torch.zeros(2, 1, 10, 10, dtype=dtype) if masked else None

        given = (query, key, value, bias, 0.0, not masked)
        run = partial(math_of, *given, scale=0.25)
        output, forward = allocations(run)
        gradient = torch.ones_like(output)
        _, backward = allocations(partial(output.backward, gradient))
        results.append((output, query.grad, key.grad, value.grad, forward, backward))
    for mine, theirs in zip(*results, strict=True):
        assert mine == theirs if isinstance(mine, list) else torch.equal(mine, theirs)


def torch_math(*given: Any, scale: float, enable_gqa: bool) -> torch.Tensor:
    return aten._scaled_dot_product_attention_math(*given, scale=scale, enable_gqa=enable_gqa)[0]


def allocations(run: Any) -> tuple[Any, list[tuple[int, int]]]:
    """What `run` gives, and the bytes of each allocation with the bytes alive after it; those of numbers left out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = run()
    assert profiled.profiler is not None
    events: Any = profiled.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in events.events() if event.name() == "[memory]")
    changes = [num_bytes for _, num_bytes in changes if abs(num_bytes) > NUMBER_BYTES]
    return result, [taken for taken in zip(changes, accumulate(changes), strict=True) if taken[0] > 0]
