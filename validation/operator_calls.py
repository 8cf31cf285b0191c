"""The operators that are timed, as PyTorch calls on tensors of random numbers, with their FLOPs and bytes.

Random, since a product of zeros draws less power and runs faster. Needs torch alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from validation.operator_shapes import OperatorCase, Phase

TORCH_DTYPE = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,
}
CAST_TO = {torch.bfloat16: torch.float32, torch.float32: torch.bfloat16}
DROPOUT = 0.1
NORM_EPSILON = 1e-6
ADAMW_STATES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A function and what it is called with; its backward takes the gradients of the inputs that require one."""

    function: Callable[..., Any]
    inputs: tuple[Tensor, ...] = ()
    flops: int = 0
    """Of its matrix products, in the phase that is asked for, as torch's FlopCounterMode counts: causal or not."""
    bytes_moved: int | None = None
    """Where it is not what `moved_bytes` sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is timed; `flops` and `bytes` as `Operator.flops` and `moved_bytes` say."""

    run: Callable[[], Any]
    flops: int
    bytes: int


def call_of(case: OperatorCase, device: str) -> Call:
    with torch.device(device):
        operator = OPERATORS[case.operator](case)
    moved = moved_bytes(operator, case.phase) if operator.bytes_moved is None else operator.bytes_moved
    run = backward_of(operator) if case.phase == "backward" else partial(operator.function, *operator.inputs)
    return Call(run=run, flops=operator.flops, bytes=moved)


def backward_of(operator: Operator) -> Callable[[], Any]:
    output = operator.function(*operator.inputs)
    leaves = [tensor for tensor in operator.inputs if tensor.requires_grad]
    return partial(torch.autograd.grad, output, leaves, torch.randn_like(output), retain_graph=True)


def moved_bytes(operator: Operator, phase: Phase) -> int:
    """The least that is read and written. Forward: inputs, output and what is saved for backward, each storage once;
    backward: what was saved and the output's gradient read, the inputs' gradients written. Not what goes from one
    kernel of the operator to the next."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = operator.function(*operator.inputs)
    if phase == "backward":
        gradients = sum(tensor.nbytes for tensor in operator.inputs if tensor.requires_grad)
        return storage_bytes(saved) + output.nbytes + gradients
    return storage_bytes([*operator.inputs, output, *saved])


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages under `tensors`, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def dtype_of(case: OperatorCase) -> torch.dtype:
    return TORCH_DTYPE[case.dtype]


def trained(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, dtype=dtype).requires_grad_()


# --- the operators ----------------------------------------------------------------------------------------------------


def nothing(case: OperatorCase) -> Operator:
    return Operator(function=lambda: None, bytes_moved=0)


def matmul(case: OperatorCase) -> Operator:
    """mm, or bmm where there is a batch; 2·M·N·K FLOPs a product. A transposed operand is a view, as in a model."""
    batch, m, n, k = (case.shape[name] for name in ("batch", "M", "N", "K"))
    a_is_transposed, b_is_transposed = (letter == "t" for letter in case.shape["layout"])
    a = _matrices(batch, m, k, a_is_transposed, dtype_of(case))
    b = _matrices(batch, k, n, b_is_transposed, dtype_of(case))
    return Operator(function=torch.mm if batch == 1 else torch.bmm, inputs=(a, b), flops=2 * batch * m * n * k)


def _matrices(batch: int, rows: int, columns: int, is_transposed: bool, dtype: torch.dtype) -> Tensor:
    size = (columns, rows) if is_transposed else (rows, columns)
    matrices = torch.randn(size if batch == 1 else (batch, *size), dtype=dtype)
    return matrices.mT if is_transposed else matrices


def attention(case: OperatorCase) -> Operator:
    """scaled_dot_product_attention on [B, heads, S, head_dim] views of [B, S, heads, head_dim], as models pass it.

    Each product of scores or values has 2·B·heads·S·S_kv·head_dim FLOPs: two forward, four backward, and the kernels
    that keep no scores compute them again (torch/utils/flop_counter.py, sdpa_backward_flop_count).
    """
    batch, heads, kv_heads, queries, keys, head_dim = (
        case.shape[name] for name in ("B", "heads", "kv_heads", "S", "S_kv", "head_dim")
    )
    q, k, v = (
        torch.randn(batch, length, number, head_dim, dtype=dtype_of(case)).transpose(1, 2).requires_grad_()
        for number, length in ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    )
    function = partial(F.scaled_dot_product_attention, is_causal=case.shape["causal"], enable_gqa=heads != kv_heads)
    recomputed = 0 if case.backend == "math" else 1
    products = 2 if case.phase == "forward" else 4 + recomputed
    return Operator(function=function, inputs=(q, k, v), flops=products * 2 * batch * heads * queries * keys * head_dim)


def pointwise(function: Callable[..., Tensor], operands: int = 1) -> Callable[[OperatorCase], Operator]:
    """Softmax too: over the last dimension, in the input's dtype."""

    def operator(case: OperatorCase) -> Operator:
        size = tuple(case.shape.values())
        return Operator(function=function, inputs=tuple(trained(*size, dtype=dtype_of(case)) for _ in range(operands)))

    return operator


def copy(case: OperatorCase) -> Operator:
    """From device memory to device memory."""
    source, target = (torch.randn(case.shape["elements"], dtype=dtype_of(case)) for _ in range(2))
    return Operator(function=target.copy_, inputs=(source,), bytes_moved=source.nbytes + target.nbytes)


def norm(function: Callable[..., Tensor], has_bias: bool = False) -> Callable[[OperatorCase], Operator]:
    """Over the last dimension, weight (and bias) of the input's dtype."""

    def operator(case: OperatorCase) -> Operator:
        rows, columns = case.shape["rows"], case.shape["columns"]
        sizes = [(rows, columns)] + [(columns,)] * (2 if has_bias else 1)
        return Operator(function=function, inputs=tuple(trained(*size, dtype=dtype_of(case)) for size in sizes))

    return operator


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, NORM_EPSILON)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, NORM_EPSILON)


def transformers_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """As transformers 5.23.0 writes it out, LlamaRMSNorm.forward: six kernels, in fp32."""
    x32 = x.to(torch.float32)
    variance = x32.pow(2).mean(-1, keepdim=True)
    x32 = x32 * torch.rsqrt(variance + NORM_EPSILON)
    return weight * x32.to(x.dtype)


def cross_entropy(case: OperatorCase) -> Operator:
    """Of logits cast to fp32 first, as transformers' ForCausalLMLoss does."""
    rows, vocabulary = case.shape["rows"], case.shape["vocabulary"]
    labels = torch.randint(vocabulary, (rows,))
    logits = trained(rows, vocabulary, dtype=dtype_of(case))
    return Operator(function=lambda logits, labels: F.cross_entropy(logits.float(), labels), inputs=(logits, labels))


def embedding(case: OperatorCase) -> Operator:
    """Random rows of the table are read; backward writes the gradient of the whole table."""
    rows, vocabulary, columns = (case.shape[name] for name in ("rows", "vocabulary", "columns"))
    indices = torch.randint(vocabulary, (rows,))
    table = trained(vocabulary, columns, dtype=dtype_of(case))
    rows_moved = indices.nbytes + 2 * rows * columns * table.itemsize
    return Operator(
        function=lambda table, indices: F.embedding(indices, table),
        inputs=(table, indices),
        bytes_moved=rows_moved if case.phase == "forward" else None,
    )


def adamw(case: OperatorCase) -> Operator:
    """A step of torch.optim.AdamW: gradient read; parameter and both states, of its dtype, read and written."""
    elements, tensors = case.shape["parameters"], case.shape["tensors"]
    parameters = [trained(elements // tensors, dtype=dtype_of(case)) for _ in range(tensors)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(parameters, foreach=case.backend == "foreach", fused=case.backend == "fused")
    parameter_bytes = sum(parameter.nbytes for parameter in parameters)
    return Operator(function=optimizer.step, bytes_moved=parameter_bytes * (1 + 2 * (1 + ADAMW_STATES)))


OPERATORS: dict[str, Callable[[OperatorCase], Operator]] = {
    "matmul": matmul,
    "attention": attention,
    "copy": copy,
    "cast": pointwise(lambda x: x.to(CAST_TO[x.dtype])),
    "add": pointwise(torch.add, operands=2),
    "mul": pointwise(torch.mul, operands=2),
    "silu": pointwise(F.silu),
    "gelu": pointwise(F.gelu),
    "dropout": pointwise(partial(F.dropout, p=DROPOUT)),
    "softmax": pointwise(partial(F.softmax, dim=-1)),
    "layer_norm": norm(layer_norm, has_bias=True),
    "rms_norm": norm(rms_norm),
    "transformers_rms_norm": norm(transformers_rms_norm),
    "cross_entropy": cross_entropy,
    "embedding": embedding,
    "adamw": adamw,
    "nothing": nothing,
}
