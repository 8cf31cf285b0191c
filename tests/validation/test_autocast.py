"""The emulation of CUDA's autocast against torch's own lists and documented behaviour."""

import pytest
import torch
from torch.nn import functional

from validation.autocast import cuda_list
from validation.cuda_kernels import CudaFunctions

LOW = torch.bfloat16


def low(*shape: int) -> torch.Tensor:
    return torch.rand(*shape).to(LOW)


def test_torch_lists_the_functions_that_these_models_use() -> None:
    assert {"linear", "matmul", "addmm", "bmm", "scaled_dot_product_attention"} <= cuda_list(
        "AT_FORALL_LOWER_PRECISION_FP"
    )
    assert {"pow", "rsqrt", "layer_norm", "nll_loss"} <= cuda_list("AT_FORALL_FP32")
    assert {"softmax", "log_softmax", "sum"} <= cuda_list("AT_FORALL_FP32_SET_OPT_DTYPE")
    assert "addcmul" in cuda_list("AT_FORALL_PROMOTE")


def test_an_unknown_list_is_an_error() -> None:
    with pytest.raises(LookupError, match="AT_FORALL_NOTHING"):
        cuda_list("AT_FORALL_NOTHING")


FP32_RESULTS = {
    "pow": lambda: low(2) ** 2.0,
    "pow of a number": lambda: 2.0 ** low(2),
    "rsqrt": lambda: torch.rsqrt(low(2)),
    "exp": lambda: low(2).exp(),
    "layer_norm": lambda: functional.layer_norm(low(2, 4), (4,)),
    "softmax": lambda: functional.softmax(low(2, 4), dim=-1),
    "method softmax": lambda: low(2, 4).softmax(-1),
    "sum": lambda: low(2, 4).sum(-1),
    "promotion": lambda: torch.addcmul(torch.rand(2), low(2), low(2)),
}
LOW_RESULTS = {
    "linear": lambda: functional.linear(torch.rand(2, 4), torch.rand(3, 4)),
    "matmul": lambda: torch.rand(2, 4) @ torch.rand(4, 2),
    "addmm": lambda: torch.addmm(torch.rand(2), torch.rand(3, 4), torch.rand(4, 2)),
    "not listed": lambda: functional.gelu(low(2)),
    "a type that is asked for": lambda: functional.softmax(low(2, 4), dim=-1, dtype=LOW),
}


@pytest.mark.parametrize("function", FP32_RESULTS)
def test_listed_functions_give_fp32(function: str) -> None:
    with CudaFunctions(), torch.autocast("cpu", LOW):
        assert FP32_RESULTS[function]().dtype is torch.float32


@pytest.mark.parametrize("function", LOW_RESULTS)
def test_other_functions_stay_low(function: str) -> None:
    with CudaFunctions(), torch.autocast("cpu", LOW):
        assert LOW_RESULTS[function]().dtype is LOW


@pytest.mark.parametrize("function", ["pow", "rsqrt", "softmax", "sum"])
def test_without_autocast_types_stay(function: str) -> None:
    with CudaFunctions():
        assert FP32_RESULTS[function]().dtype is LOW


@pytest.mark.parametrize(("requires_grad", "casts"), [(True, 1), (False, 2)])
def test_only_casts_of_leaves_that_require_grad_are_cached(requires_grad: bool, casts: int) -> None:
    weight = torch.rand(3, 4, requires_grad=requires_grad)
    inputs = torch.rand(2, 4, requires_grad=True)
    saved: set[int] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == weight.numel():
            saved.add(tensor.untyped_storage().data_ptr())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, CudaFunctions(), torch.autocast("cpu", LOW):
        outputs = functional.linear(inputs, weight), functional.linear(inputs, weight)
    assert len(saved) == casts
    assert all(output.dtype is LOW for output in outputs)
