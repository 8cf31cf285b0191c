"""The corrections that make a trace on fake CPU tensors count what CUDA's kernels keep."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from calc import Scenario, estimate
from calc.dtype import DType
from calc.ledger import Tensor
from calc.operators import Numerics, embedding, parameter
from calc.sizes import Sizes
from tests.validation.families import config_of
from validation.cuda_kernels import CudaFunctions, cuda_call, hidden_workspace_bytes
from validation.trace import trace

aten = torch.ops.aten
BF16 = Numerics(weights=DType.BF16, compute=DType.BF16)


def saved_dtypes(output: torch.Tensor) -> set[torch.dtype]:
    node = output.grad_fn
    return {getattr(node, name).dtype for name in dir(node) if name.startswith("_saved_result")}


def test_dropout_keeps_a_bool_mask() -> None:
    with CudaFunctions():
        output = functional.dropout(torch.rand(4, requires_grad=True), 0.5)
    assert saved_dtypes(output) == {torch.bool}


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_dropout_that_drops_nothing_keeps_nothing(p: float, training: bool) -> None:
    values = torch.rand(4)
    with CudaFunctions():
        assert torch.equal(functional.dropout(values, p, training), values)


def test_softmax_of_fp16_into_fp32_makes_no_fp32_copy_of_its_input() -> None:
    values = torch.empty(2, 4, dtype=torch.float16, device="meta", requires_grad=True)
    with CudaFunctions():
        output = functional.softmax(values, dim=-1, dtype=torch.float32)
    assert output.dtype is torch.float32
    assert output.grad_fn is not None
    (previous, _), *_ = output.grad_fn.next_functions
    assert previous is not None
    assert "AccumulateGrad" in previous.name()  # no ToCopyBackward between


def test_layer_norm_keeps_fp32_statistics_of_half_values() -> None:
    values = torch.rand(2, 4).bfloat16()
    out, mean, rstd = cuda_call(aten.native_layer_norm.default, (values, [4], None, None, 1e-5), {}, in_engine=False)
    assert (out.dtype, mean.dtype, rstd.dtype) == (torch.bfloat16, torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("key_value_heads", "head_size", "expected"),
    [
        # softmax_d: 4 bytes · B 2 · N 4 · 128; dq: 4 · B 2 · 128 · N 4 · D rounded up to 32
        (4, 40, [4 * 2 * 4 * 128, 4 * 2 * 128 * 4 * 64]),
        # from 224 on the kernel for 256 is used
        (4, 200, [4 * 2 * 4 * 128, 4 * 2 * 128 * 4 * 256]),
        # fewer key heads: dk and dv of all 4 query heads too, 2 bytes · B 2 · S 100 · N 4 · D 64
        (2, 64, [4 * 2 * 4 * 128, 4 * 2 * 128 * 4 * 64, 2 * 2 * 100 * 4 * 64, 2 * 2 * 100 * 4 * 64]),
    ],
)
def test_flash_backward_workspace(key_value_heads: int, head_size: int, expected: list[int]) -> None:
    def by_token(heads: int) -> torch.Tensor:
        return torch.empty(2, 100, heads, head_size, dtype=torch.bfloat16, device="meta").transpose(1, 2)

    query, key = by_token(4), by_token(key_value_heads)
    backward = aten._scaled_dot_product_flash_attention_backward.default
    assert hidden_workspace_bytes(backward, (query, query, key, key, query)) == [expected]


def test_flash_backward_copies_a_gradient_that_is_not_laid_out_by_token() -> None:
    query = torch.empty(2, 4, 128, 64, dtype=torch.bfloat16, device="meta")
    by_token = query.transpose(1, 2).contiguous().transpose(1, 2)
    backward = aten._scaled_dot_product_flash_attention_backward.default
    assert hidden_workspace_bytes(backward, (query, query, query, query, by_token))[0][0] == query.nbytes


def by_token(dtype: torch.dtype, sequence: int, heads: int, head_size: int) -> torch.Tensor:
    return torch.empty(2, sequence, heads, head_size, dtype=dtype, device="meta").transpose(1, 2)


@pytest.mark.parametrize(
    ("dtype", "head_size", "floats"),
    [
        # kernel_backward.h: per head, tiles of 64 · 64 (of half precision above 64: 128 · 128) floats and 4 before each
        (torch.bfloat16, 64, 2 * (64 * 64 + 4)),
        (torch.bfloat16, 72, 1 * (128 * 128 + 4)),
        (torch.float32, 72, 1 * 2 * (128 * 64 + 4)),
        # half precision above 128: room for the gradients of k and v too, split in 64 keys, heads to 128
        (torch.bfloat16, 136, 1 * 3 * (128 * 64 + 4) + 2 * (2 * 64 * 256)),
    ],
)
def test_efficient_backward_workspace(dtype: torch.dtype, head_size: int, floats: int) -> None:
    query = by_token(dtype, 100, 4, head_size)
    backward = aten._scaled_dot_product_efficient_attention_backward.default
    moments = hidden_workspace_bytes(backward, (query, query, query, query, None, query))
    delta = 4 * 2 * 4 * 100
    assert moments[-1] == [delta, 4 * 2 * 4 * floats]
    # in fp32 delta comes of the product of the output and its gradient, its sum, and the sum turned
    assert moments[:-1] == ([[query.nbytes, delta, delta]] if dtype is torch.float32 else [])


def test_efficient_forward_collects_large_half_precision_outputs_in_fp32() -> None:
    forward = aten._scaled_dot_product_efficient_attention.default
    hidden = [
        hidden_workspace_bytes(forward, (by_token(dtype, 5, 4, head_size),) * 3)
        for dtype, head_size in ((torch.bfloat16, 136), (torch.bfloat16, 128), (torch.float32, 136))
    ]
    assert hidden == [[[4 * 2 * 5 * 4 * 136]], [], []]


def test_generator_states_of_the_efficient_kernel_are_on_the_host() -> None:
    query = by_token(torch.float32, 5, 4, 8)
    forward = aten._scaled_dot_product_efficient_attention.default
    results = cuda_call(forward, (query, query, query, None, True), {}, in_engine=False)
    assert [result.nbytes for result in results[2:]] == [0, 0]
    assert results[1].shape == (2, 4, 32)


def test_safe_softmax_marks_scores_and_rows() -> None:
    scores = torch.empty(2, 4, 5, 7)
    assert hidden_workspace_bytes(aten._safe_softmax.default, (scores, -1)) == [[2 * 4 * 5 * 7, 2 * 4 * 5, 4]]


def test_softmax_backward_multiplies_the_gradient_by_the_result_first() -> None:
    shares = torch.empty(2, 4, 5, 7)
    backward = aten._softmax_backward_data.default
    assert hidden_workspace_bytes(backward, (shares, shares, -1, torch.float32)) == [[4 * 2 * 4 * 5 * 7]]
    assert hidden_workspace_bytes(aten._log_softmax_backward_data.default, (shares, shares, -1, torch.float32)) == []


@pytest.mark.parametrize(
    ("num_indices", "num_weights", "stride", "expected"),
    [
        (3072, 5000, 64, []),
        # 3073 indices, where they were, where each weight's begin; 2 counts; 3073 weights at most, 307 + 3073 sums
        (3073, 5000, 64, [[8 * 3073] * 3 + [8, 8 * 3073, 8 * 3073, 8, 8 * 3380, 4 * 3380 * 64]]),
        # one block of 64 threads for each of 127 weights: 382 + 127 sums are more than 4 · 127, so none are kept
        (3820, 127, 64, []),
        (3819, 127, 64, [[8 * 3819] * 3 + [8, 8 * 127, 8 * 127, 8, 8 * 508, 4 * 508 * 64]]),
        # 128 weights of 8192 columns are 1024 blocks of 1024 threads: enough to work on the sums
        (64000, 128, 8192, [[8 * 64000] * 3 + [8, 8 * 128, 8 * 128, 8, 8 * 6528, 4 * 6528 * 8192]]),
        (64000, 127, 8192, []),
    ],
)
def test_embedding_backward_keeps_sums_of_ten_rows(
    num_indices: int, num_weights: int, stride: int, expected: list[list[int]]
) -> None:
    grad = torch.empty(num_indices, stride, dtype=torch.bfloat16, device="meta")
    indices = torch.empty(num_indices, dtype=torch.int64, device="meta")
    backward = aten.embedding_dense_backward.default
    assert hidden_workspace_bytes(backward, (grad, indices, num_weights, -1, False)) == expected
    ids, out = Tensor("ids", (num_indices,), DType.INT64), Tensor("out", (num_indices, stride), DType.BF16)
    row = embedding(parameter("w", (num_weights, stride), BF16), ids, out)
    in_ledger = [each.nbytes(Sizes()) for each in row.backward_temporaries]
    assert [size for size in in_ledger if size] == [size for moment in expected for size in moment]


def test_ledger_and_trace_agree_where_the_gradient_of_a_large_embedding_is_the_peak() -> None:
    config = config_of("llama") | {"num_hidden_layers": 1, "vocab_size": 200003}
    asked: dict[str, Any] = {"precision": "bf16", "optimizer": "sgd", "num_labels": 2}
    scenario = Scenario(model=config, **asked, micro_batch_size=30, sequence_length=128)
    traced = trace(scenario, config)
    backward = [event for event in traced.events if event.step == 2 and event.phase == "backward"]
    assert "embedding_dense_backward" in max(backward, key=lambda event: event.live_bytes).op
    assert estimate(scenario).memory.peak_allocated_bytes == traced.memory["peak_allocated_bytes"]


def test_kernels_copy_operands_they_cannot_read() -> None:
    turned = torch.empty(2, 3, 5, device="meta").transpose(1, 2)
    spread = torch.empty(2, 3, 10, device="meta")[..., ::2]
    assert hidden_workspace_bytes(aten._softmax.default, (turned, -1, False)) == [[turned.nbytes]]
    assert hidden_workspace_bytes(aten.bmm.default, (turned, turned)) == []
    assert hidden_workspace_bytes(aten.bmm.default, (turned, spread)) == [[spread.nbytes]]
    expanded = torch.empty(1, 3, dtype=torch.int64, device="meta").expand(2, 3)
    backward = aten.embedding_dense_backward.default
    assert hidden_workspace_bytes(backward, (turned.mT, expanded, 9, -1, False)) == [[expanded.nbytes]]


def test_other_operators_hide_nothing() -> None:
    assert hidden_workspace_bytes(aten.mm.default, (torch.empty(1, 1), torch.empty(1, 1))) == []
