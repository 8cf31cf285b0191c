"""What torch's CUDA statistics, its allocator's events and its profiler are asked, and what is made of the answers."""

import base64
import json
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.validation.fake_cuda import MIB, FakeCuda
from validation import cuda
from validation.attention_backends import restricted_to
from validation.step import Phase


def test_history_keeps_sizes_and_order() -> None:
    events = [
        {"action": "segment_alloc", "addr": 0, "size": 2 * MIB},
        {"action": "alloc", "addr": 0, "size": 512},
        {"action": "alloc", "addr": 512, "size": 700},
        {"action": "free_requested", "addr": 0, "size": 512},
        {"action": "free_completed", "addr": 0, "size": 512},
        {"action": "alloc", "addr": 0, "size": 100},
        {"action": "free_completed", "addr": 512, "size": 700},
        {"action": "free_completed", "addr": 4096, "size": 700},  # allocated before
    ]
    compact = cuda.compact(events)
    assert compact == [512, 700, -2, 100, -2]  # the second latest is freed, twice
    assert json.loads(zlib.decompress(base64.b64decode(cuda.packed(compact)))) == compact


def test_the_allocators_events_are_taken_when_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    switched: list[str | None] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda enabled, **_: switched.append(enabled))
    snapshot = {"device_traces": [[{"action": "alloc", "addr": 1, "size": 9}]]}
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: snapshot)
    found: dict[str, Any] = {}
    with cuda.history(False, found):
        pass
    assert (found, switched) == ({}, [])
    with cuda.history(True, found):
        pass
    assert (found, switched) == ({"allocator_history": cuda.packed([9])}, ["all", None])


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "matmul"),
        ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_tn", "matmul"),
        ("void flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<cutlass::bfloat16_t>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>",
            "optimizer",
        ),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "elementwise"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", "copies"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void (anonymous namespace)::softmax_warp_forward<float>", "elementwise"),
        ("something_new", "other"),
    ],
)
def test_kernels_by_kind(kernel: str, kind: str) -> None:
    assert cuda.kernel_kind(kernel) == kind


def event(
    name: str, device: str, start: int = 0, seconds: float = 0.0, flops: int = 0, annotation: bool = False
) -> Any:
    """A profiler's event, as its C++ class has it."""
    length = round(seconds * 1e9)
    return SimpleNamespace(
        name=lambda: name,
        device_type=lambda: SimpleNamespace(name=device),
        start_thread_id=lambda: 1,
        start_ns=lambda: start,
        end_ns=lambda: start + length,
        duration_ns=lambda: length,
        flops=lambda: flops,
        is_user_annotation=lambda: annotation,
    )


def test_a_profile_sums_kernels_once_and_names_the_backend() -> None:
    events = [
        event("aten::mm", "CPU", seconds=9.0, flops=100),
        event("aten::mm", "CPU", seconds=8.0, flops=100, start=1),  # autocast's second call
        event("aten::mm", "CPU", seconds=1.0, flops=50, start=10**10),
        event("aten::mul", "CPU", flops=7),
        event("aten::_scaled_dot_product_flash_attention", "CPU"),
        event("nvjet_a", "CUDA", seconds=1.0),
        event("sm90_xmma_gemm", "CUDA", seconds=2.0),
        event("Memset (Device)", "CUDA", seconds=0.5),
        event("Optimizer.step#AdamW.step", "CUDA", seconds=4.0, annotation=True),
    ]
    assert cuda.summary(events) == {
        "kernel_seconds": {"matmul": 3.0, "copies": 0.5},
        "matmul_flops": 150,
        "sdpa_backends": ["flash"],
    }


def test_a_named_backend_is_the_only_one_that_may_run() -> None:
    q = torch.zeros(1, 1, 8, 8)
    with restricted_to("math"):
        assert torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    with restricted_to("auto"):
        assert torch.backends.cuda.flash_sdp_enabled()


def test_workspaces_are_what_the_first_products_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    # Before, after forward and after backward of three products in each of three types.
    readings = iter([100, 132, 140, *[140] * 6, 140, 141, 143, *[143] * 15])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(readings))
    monkeypatch.setattr(torch.backends.cuda, "cublas_workspace_size", lambda: 32)
    monkeypatch.setattr(torch.backends.cuda, "cublaslt_workspace_size", lambda: 1)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device, **options: zeros(*size, **options))
    assert cuda.workspaces() == {
        "forward_thread_bytes": 33,
        "autograd_thread_bytes": 10,
        "first_left_by": {
            "torch.float32, mm": {"forward_thread_bytes": 32, "autograd_thread_bytes": 8},
            "torch.bfloat16, mm": {"forward_thread_bytes": 1, "autograd_thread_bytes": 2},
        },
        "cublas_setting_bytes": 32,
        "cublaslt_setting_bytes": 1,
    }
    assert next(readings, None) is None


def test_phases_that_run_out_of_memory_are_not_counted(fake: FakeCuda) -> None:
    marks = cuda.PhaseCounters()
    with pytest.raises(torch.OutOfMemoryError), marks.during(Phase.FORWARD):
        raise torch.OutOfMemoryError
    assert marks.phases == {}
