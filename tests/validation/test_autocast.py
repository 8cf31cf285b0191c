"""The emulation of CUDA's autocast against torch's own lists and documented behaviour."""

import pytest
import torch
from torch.nn import functional

from validation.autocast import autocast_inputs, cast_on_one_device, cuda_list, registered
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


LISTS = {
    name: cuda_list(f"AT_FORALL_{name}")
    for name in ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE", "DIFFERENT_REDISPATCH_SIGNATURE")
}
BESIDE_THE_LISTS = {"cudnn_convolution", "cudnn_convolution_transpose", "binary_cross_entropy"}
"""Registered one by one in autocast_mode.cpp; the last only to be refused."""


def test_the_lists_are_those_this_torch_registers_for_cuda() -> None:
    listed = frozenset[str]().union(*LISTS.values()) - {"ADD_NS"} | {"norm"}  # the macro around the last list's norm
    assert registered("CUDA") == listed | BESIDE_THE_LISTS


def called(name: str, *args: torch.Tensor) -> list[torch.dtype]:
    """The types a function of that name would be called with under autocast, an asked-for result type last."""

    def function() -> None: ...

    function.__name__ = name
    with torch.autocast("cpu", LOW):
        cast, options = autocast_inputs(function, args, {})
    return [*(x.dtype for x in cast), *options.values()]


def test_every_function_of_the_fp32_list_gets_fp32() -> None:
    assert {name for name in LISTS["FP32"] if called(name, low(2)) == [torch.float32]} == LISTS["FP32"]


def test_every_function_of_the_second_list_is_asked_for_fp32() -> None:
    asked = {name for name in LISTS["FP32_SET_OPT_DTYPE"] if called(name, low(2)) == [LOW, torch.float32]}
    assert asked == LISTS["FP32_SET_OPT_DTYPE"]


def test_every_function_of_the_promotion_list_gets_the_widest_type() -> None:
    mixed, same = (low(2), torch.rand(2)), (low(2), low(2))
    assert {name for name in LISTS["PROMOTE"] if called(name, *mixed) == [torch.float32] * 2} == LISTS["PROMOTE"]
    assert {name for name in LISTS["PROMOTE"] if called(name, *same) == [LOW] * 2} == LISTS["PROMOTE"]


def test_the_cpu_casts_what_cuda_casts_to_lower_precision_or_the_call_is_refused() -> None:
    assert cast_on_one_device() & LISTS["LOWER_PRECISION_FP"] == LISTS["LOWER_PRECISION_FP"] - registered("CPU")
    assert cast_on_one_device().isdisjoint({"linear", "matmul", "addmm", "bmm", "baddbmm"})
    with pytest.raises(NotImplementedError, match="einsum: autocast on the CPU and on CUDA differ"):
        called("einsum", torch.rand(2))
    assert called("einsum", low(2)) == [LOW]


def test_what_only_the_cpu_casts_is_refused() -> None:
    with CudaFunctions(), torch.autocast("cpu", LOW):
        with pytest.raises(NotImplementedError, match="trace: autocast on the CPU and on CUDA differ"):
            low(2, 2).trace()
        with pytest.raises(NotImplementedError, match="stack"):
            torch.stack((low(2), torch.rand(2)))
        assert torch.stack((low(2), low(2))).dtype is LOW


def test_cat_reads_each_type_as_it_is() -> None:
    """CUDA's autocast casts no input of cat: of the parts' gradients the engine casts the lower one."""
    lower, wide = low(2).requires_grad_(), torch.rand(2)
    with CudaFunctions(), torch.autocast("cpu", LOW):
        joined = torch.cat((lower, wide))
    assert joined.dtype is torch.float32
    assert joined.grad_fn is not None
    assert joined.grad_fn.next_functions[0][0] is not None
    assert joined.grad_fn.next_functions[0][0].name() == "torch::autograd::AccumulateGrad"  # no cast between


def test_cross_entropy_is_computed_as_its_parts_are() -> None:
    """The CPU's autocast would cast the logits; CUDA's casts the log-probabilities."""
    logits, target = low(3, 5).requires_grad_(), torch.tensor([1, 2, 4])
    saved: list[torch.dtype] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.dtype) or x, lambda x: x)
    with hooks, CudaFunctions(), torch.autocast("cpu", LOW):
        loss = functional.cross_entropy(logits, target)
    assert loss.dtype is torch.float32
    assert [dtype for dtype in saved if dtype is not torch.int64] == [LOW, torch.float32, torch.float32]
    torch.testing.assert_close(loss, functional.cross_entropy(logits, target).float(), rtol=2e-2, atol=0)


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
