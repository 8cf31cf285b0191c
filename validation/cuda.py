"""What torch says of a step on a GPU: the allocator's counters and events, times, kernels."""

import base64
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from validation.step import Phase

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""The Scenario's attention kernels that are scaled_dot_product_attention restricted to one backend."""

BACKEND_OPERATORS = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
}

KERNEL_KINDS = {
    "optimizer": r"multi_tensor",
    "attention": r"flash|fmha|attention|sdpa",
    "matmul": r"gemm|gemv|nvjet|xmma|cutlass|cublas|splitk",
    "copies": r"memcpy|memset|copy",
    "elementwise": r"elementwise|reduce|softmax|norm|dropout|embedding|index|scatter|gather|nll|fill|triu|sort",
}
"""Kinds by the kernels' names; the first pattern that is found counts. The for-loop optimizers' are elementwise."""

MATMULS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
COUNTERS = ("allocated", "reserved", "requested")
HISTORY_ENTRIES = 10**7


def counters() -> dict[str, int]:
    """torch's counters: the peaks since they were reset, and now."""
    statistics = torch.cuda.memory_stats()
    return {
        f"{moment}_{counter}_bytes": statistics[f"{counter}_bytes.all.{key}"]
        for moment, key in (("peak", "peak"), ("end", "current"))
        for counter in COUNTERS
    }


class PhaseCounters:
    """Peak and end of every phase of one step; over micro-batches the highest peak and the last end."""

    def __init__(self) -> None:
        self.phase: Phase | None = None
        self.phases: dict[Phase, dict[str, int]] = {}
        self.first_forward_end_bytes = 0

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        self.phase = phase
        torch.cuda.reset_peak_memory_stats()
        yield
        seen = counters()
        if not self.first_forward_end_bytes:
            self.first_forward_end_bytes = seen["end_allocated_bytes"]
        for name, value in self.phases.get(phase, {}).items():
            if name.startswith("peak"):
                seen[name] = max(seen[name], value)
        self.phases[phase] = seen

    def highest(self, counter: str) -> int:
        return max(phase[f"peak_{counter}_bytes"] for phase in self.phases.values())


class PhaseTimes:
    """Seconds on the GPU's clock of every phase of one step, by CUDA events."""

    def __init__(self) -> None:
        self.spans: list[tuple[Phase, Any, Any]] = []

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self.spans.append((phase, start, end))

    def seconds(self) -> dict[str, float]:
        """By phase, and `step` from the first mark to the last."""
        torch.cuda.synchronize()
        totals: dict[str, float] = defaultdict(float)
        for phase, start, end in self.spans:
            totals[str(phase)] += start.elapsed_time(end) / 1000
        totals["step"] = self.spans[0][1].elapsed_time(self.spans[-1][2]) / 1000
        return dict(totals)


def restricted_to(attention: str) -> AbstractContextManager[Any]:
    """scaled_dot_product_attention with one backend only, where the scenario names one."""
    return sdpa_kernel(BACKENDS[attention]) if attention in BACKENDS else nullcontext()


def workspaces() -> dict[str, int]:
    """Bytes of cuBLAS's workspaces, seen as what the first product in forward and in backward leaves allocated."""
    before = torch.cuda.memory_allocated()
    x = torch.zeros(64, 64, device="cuda", requires_grad=True)
    y = x @ x
    forward = torch.cuda.memory_allocated() - before - x.nbytes - y.nbytes
    y.sum().backward()
    x.grad = None
    del x, y
    both = torch.cuda.memory_allocated() - before
    return {"forward_thread_bytes": forward, "autograd_thread_bytes": both - forward}


@contextmanager
def history(wanted: bool, into: dict[str, Any]) -> Iterator[None]:
    """Puts the allocator's events, compact enough to keep and complete enough to replay, in `into`."""
    if not wanted:
        yield
        return
    torch.cuda.memory._record_memory_history("all", context=None, max_entries=HISTORY_ENTRIES)
    try:
        yield
        events: Any = torch.cuda.memory._snapshot().get("device_traces")
        into["allocator_history"] = packed(compact(events[0]))
    finally:
        torch.cuda.memory._record_memory_history(None)


def compact(events: Iterable[dict[str, Any]]) -> list[int]:
    """Requested bytes of each allocation in order; −d where the d-th latest allocation is freed.

    Distances, because those of equal layers are equal and so compress.
    """
    compacted: list[int] = []
    alive: dict[int, int] = {}
    allocations = 0
    for event in events:
        if event["action"] == "alloc":
            allocations += 1
            alive[event["addr"]] = allocations
            compacted.append(event["size"])
        elif event["action"] == "free_completed":
            compacted.append(alive.pop(event["addr"]) - allocations - 1)
    return compacted


def packed(history: list[int]) -> str:
    """As JSON, compressed, in base64."""
    return base64.b64encode(zlib.compress(json.dumps(history, separators=(",", ":")).encode(), 9)).decode()


def profiled(step: Callable[[], None]) -> dict[str, Any]:
    """Kernel seconds by kind, matmul FLOPs and the attention backend of one step, as torch's profiler sees it."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, with_flops=True) as profile:
        step()
        torch.cuda.synchronize()
    return summary(profile.events() or ())


def summary(events: Iterable[Any]) -> dict[str, Any]:
    """The numbers kept of a profile's events, which are operators (on the CPU) and kernels (on the GPU)."""
    seconds: dict[str, float] = defaultdict(float)
    backends, matmul_flops = set(), 0
    for event in events:
        if event.device_type.name == "CUDA":
            if not event.is_user_annotation:  # it spans kernels that have events of their own
                seconds[kernel_kind(event.name)] += event.time_range.elapsed_us() / 1e6
        elif event.name in BACKEND_OPERATORS:
            backends.add(BACKEND_OPERATORS[event.name])
        elif event.name in MATMULS and not is_cast_again(event):
            matmul_flops += event.flops
    return {
        "kernel_seconds": dict(seconds),
        "matmul_flops": matmul_flops,
        "sdpa_backends": sorted(backends),
    }


def is_cast_again(event: Any) -> bool:
    """Autocast calls an operator again with cast inputs, and both calls are events."""
    return event.cpu_parent is not None and event.cpu_parent.name == event.name


def kernel_kind(name: str) -> str:
    lower = name.lower()
    return next((kind for kind, pattern in KERNEL_KINDS.items() if re.search(pattern, lower)), "other")
