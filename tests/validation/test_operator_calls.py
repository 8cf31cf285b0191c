"""The operators themselves, run on a CPU at tiny sizes: what they compute, their FLOPs and their bytes."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from validation.attention_backends import restricted_to
from validation.operator_calls import Call, call_of, transformers_rms_norm
from validation.operator_shapes import OperatorCase, Phase, attention_shape, operator_cases

FORWARD: Phase = "forward"
BACKWARD: Phase = "backward"
ON_CPU = ("", "flash", "math", "foreach", "fused")
TINY = {
    "batch": 3,
    "M": 5,
    "N": 6,
    "K": 7,
    "B": 2,
    "S": 8,
    "S_kv": 8,
    "head_dim": 16,
    "elements": 48,
    "rows": 5,
    "columns": 12,
    "vocabulary": 11,
    "parameters": 24,
    "tensors": 2,
}
HEADS = {"heads": 4, "kv_heads": 2}


def call(operator: str, phase: Phase, dtype: str = "fp32", backend: str = "", **shape: Any) -> Call:
    case = OperatorCase(operator=operator, phase=phase, shape=shape, dtype=dtype, backend=backend)
    with restricted_to(backend):
        return call_of(case, "cpu")


def tiny(case: OperatorCase) -> OperatorCase:
    """The case at a size for a CPU; what is 1 (a batch, a new token) or as many heads as another stays so."""
    is_grouped = case.shape.get("heads") != case.shape.get("kv_heads")
    sizes = TINY | (HEADS if is_grouped else {"heads": 4, "kv_heads": 4})
    shape = {
        name: value if value == 1 or isinstance(value, str) else sizes.get(name, value)
        for name, value in case.shape.items()
    }
    return OperatorCase(operator=case.operator, phase=case.phase, shape=shape, dtype=case.dtype, backend=case.backend)


TINY_CASES = {small.id: small for small in map(tiny, operator_cases())}


@pytest.mark.parametrize("case", [case for case in TINY_CASES.values() if case.backend in ON_CPU], ids=lambda c: c.id)
def test_every_operator_runs_again_and_again(case: OperatorCase) -> None:
    with restricted_to(case.backend):
        found = call_of(case, "cpu")
        found.run()
        found.run()
    assert found.bytes > 0 or case.operator == "nothing"
    assert (found.flops > 0) == (case.operator in ("matmul", "attention"))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", ["nt", "nn", "tn"])
def test_a_product_has_its_sizes_flops_and_bytes_in_every_layout(batch: int, layout: str) -> None:
    found = call("matmul", FORWARD, batch=batch, M=5, N=6, K=7, layout=layout)
    with FlopCounterMode(display=False) as counter:
        product = found.run()
    assert product.shape[-2:] == (5, 6)
    assert found.flops == counter.get_total_flops() == batch * 2 * 5 * 6 * 7
    assert found.bytes == batch * 4 * (5 * 7 + 7 * 6 + 5 * 6)


def test_layouts_are_those_of_a_linear_layer_and_its_gradients() -> None:
    # [M, K] operands that lie in memory as [K, M] have strides (1, M).
    strides = {}
    for layout in ("nt", "nn", "tn"):
        a, b = call("matmul", FORWARD, batch=1, M=5, N=6, K=7, layout=layout).run.args  # pyright: ignore
        strides[layout] = (a.stride(), b.stride())
    assert strides == {"nt": ((7, 1), (1, 7)), "nn": ((7, 1), (6, 1)), "tn": ((1, 5), (6, 1))}


@pytest.mark.parametrize("queries", [1, 8])
@pytest.mark.parametrize("causal", [True, False])
def test_attentions_flops_are_torchs_own(queries: int, causal: bool) -> None:
    shape = attention_shape(2, 4, 2, queries, 8, 16, causal)
    q, kv = (2, 4, queries, 16), (2, 2, 8, 16)
    assert call("attention", FORWARD, backend="flash", **shape).flops == sdpa_flop_count(q, kv, kv)
    assert call("attention", BACKWARD, backend="flash", **shape).flops == sdpa_backward_flop_count(q, q, kv, kv)


@pytest.mark.parametrize("phase", [FORWARD, BACKWARD])
def test_the_math_backends_flops_are_those_of_its_products(phase: Phase) -> None:
    found = call("attention", phase, backend="math", **attention_shape(2, 4, 4, 8, 8, 16, True))
    with FlopCounterMode(display=False) as counter, restricted_to("math"):
        found.run()
    assert found.flops == counter.get_total_flops()


def test_flash_attention_moves_its_inputs_output_and_logsumexp_and_backward_their_gradients() -> None:
    q, kv, logsumexp = 4 * 2 * 4 * 8 * 16, 4 * 2 * 2 * 8 * 16, 4 * 2 * 4 * 8
    shape = attention_shape(2, 4, 2, 8, 8, 16, True)
    forward = call("attention", FORWARD, backend="flash", **shape)
    assert forward.bytes == 2 * q + 2 * kv + logsumexp
    # Reads q, k, v, output, logsumexp and the output's gradient; writes three gradients.
    backward = call("attention", BACKWARD, backend="flash", **shape)
    assert backward.bytes == forward.bytes + q + (q + 2 * kv)
    assert [gradient.shape for gradient in backward.run()] == [(2, 4, 8, 16), (2, 2, 8, 16), (2, 2, 8, 16)]


def test_attentions_operands_lie_as_a_models_projections_leave_them() -> None:
    q, *_ = call("attention", FORWARD, backend="flash", **attention_shape(2, 4, 2, 8, 8, 16, True)).run.args  # pyright: ignore
    assert q.shape == (2, 4, 8, 16)
    assert q.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    ("operator", "dtype", "forward", "backward"),
    [
        # Bytes of one element, of 1000: what is read and written forward; saved, gradient and written backward.
        ("copy", "bf16", 2 + 2, None),
        ("cast", "bf16", 2 + 4, None),
        ("cast", "fp32", 4 + 2, None),
        ("add", "bf16", 3 * 2, None),
        ("mul", "fp32", 3 * 4, None),
        ("silu", "bf16", 2 * 2, 3 * 2),
        ("gelu", "fp32", 2 * 4, 3 * 4),
    ],
)
def test_bytes_of_pointwise_operators(operator: str, dtype: str, forward: int, backward: int | None) -> None:
    assert call(operator, FORWARD, dtype, elements=1000).bytes == 1000 * forward
    if backward is not None:
        assert call(operator, BACKWARD, dtype, elements=1000).bytes == 1000 * backward


def test_softmax_saves_its_output_and_a_norm_its_rows_statistics() -> None:
    matrix, row, column = 4 * 10 * 100, 4 * 10, 4 * 100
    assert call("softmax", FORWARD, rows=10, columns=100).bytes == 2 * matrix
    assert call("softmax", BACKWARD, rows=10, columns=100).bytes == 3 * matrix
    # Mean and deviation of each row; weight and bias, whose gradients are written too. Backward reads no bias, but
    # autograd saves it.
    assert call("layer_norm", FORWARD, rows=10, columns=100).bytes == 2 * matrix + 2 * row + 2 * column
    assert call("layer_norm", BACKWARD, rows=10, columns=100).bytes == 3 * matrix + 2 * row + 4 * column


def test_cross_entropy_is_of_fp32_logits_and_keeps_their_logarithms() -> None:
    labels, scalars = 10 * 8, 2 * 4  # the loss and the labels' total weight
    assert call("cross_entropy", FORWARD, "bf16", rows=10, vocabulary=100).bytes == 1000 * (2 + 4) + labels + scalars
    found = call("cross_entropy", BACKWARD, "bf16", rows=10, vocabulary=100)
    assert found.bytes == 1000 * (4 + 2) + labels + scalars
    assert found.run()[0].dtype == torch.bfloat16


def test_an_embedding_reads_its_rows_and_writes_the_gradient_of_the_table() -> None:
    assert call("embedding", FORWARD, rows=10, vocabulary=100, columns=8).bytes == 10 * 8 + 2 * 4 * 10 * 8
    assert call("embedding", BACKWARD, rows=10, vocabulary=100, columns=8).bytes == 10 * 8 + 4 * 10 * 8 + 4 * 100 * 8


@pytest.mark.parametrize("backend", ["foreach", "fused"])
def test_adamw_reads_four_tensors_and_writes_three(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.AdamW] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (made.append(self), step(self)))
    found = call("adamw", "optimizer", "bf16", backend, parameters=24, tensors=2)
    assert found.bytes == 24 * 2 * 7
    found.run()
    group = made[0].param_groups[0]
    assert group[backend] is True
    assert [parameter.shape for parameter in group["params"]] == [(12,), (12,)]
    assert made[0].state[group["params"][0]]["exp_avg"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_norm_that_is_written_out_is_that_of_transformers(dtype: torch.dtype) -> None:
    norm = LlamaRMSNorm(12).to(dtype)
    x = torch.randn(5, 12, dtype=dtype)
    norm.weight.data = torch.randn(12, dtype=dtype)
    assert torch.equal(transformers_rms_norm(x, norm.weight), norm(x))


def test_the_operators_are_timed_on_random_numbers() -> None:
    a, b = call("matmul", FORWARD, batch=1, M=50, N=60, K=70, layout="nt").run.args  # pyright: ignore
    assert float(a.std()) == pytest.approx(1, abs=0.1)
    assert float(b.std()) == pytest.approx(1, abs=0.1)


def test_backward_is_the_gradient_of_the_operator() -> None:
    backward = call("silu", BACKWARD, elements=48).run
    _, (x,), gradient = backward.args  # pyright: ignore
    sigmoid = torch.sigmoid(x)
    torch.testing.assert_close(backward()[0], gradient * sigmoid * (1 + x * (1 - sigmoid)))


def test_dropout_drops_a_tenth() -> None:
    dropped = call("dropout", FORWARD, elements=10000).run() == 0
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=0.02)
