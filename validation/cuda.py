"""What torch says of a step on a GPU: the allocator's counters and events, times, kernels."""

import base64
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from validation.step import Phase

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

LOSS = "loss"
"""A part of forward."""
ORDER = (Phase.FORWARD, LOSS, Phase.BACKWARD, Phase.OPTIMIZER, Phase.PREFILL, Phase.BETWEEN, Phase.DECODE)
"""Of a training step, then of a generation."""


def counters() -> dict[str, int]:
    """torch's counters: the peaks since they were reset, and now."""
    statistics = torch.cuda.memory_stats()
    return {
        f"{moment}_{counter}_bytes": statistics[f"{counter}_bytes.all.{key}"]
        for moment, key in (("peak", "peak"), ("end", "current"))
        for counter in COUNTERS
    }


def highest(earlier: dict[str, int], later: dict[str, int]) -> dict[str, int]:
    """The counters of two spans, one after the other: the higher peaks, the later end."""
    return {
        name: max(value, earlier.get(name, 0)) if name.startswith("peak") else value for name, value in later.items()
    }


class PhaseCounters:
    """Peak and end of every phase of one step; over micro-batches the highest peak and the last end."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, int]] = {}
        self.first_forward_end_bytes = 0
        self.before_inside: dict[str, int] = {}

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        torch.cuda.reset_peak_memory_stats()
        self.before_inside = {}
        yield
        self._note(phase, highest(self.before_inside, counters()))
        if not self.first_forward_end_bytes:
            self.first_forward_end_bytes = self.phases[phase]["end_allocated_bytes"]

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """A part of a phase, which also counts in the phase."""
        self.before_inside = highest(self.before_inside, counters())
        torch.cuda.reset_peak_memory_stats()
        yield
        self._note(name, counters())

    def highest(self, counter: str) -> int:
        return max(phase[f"peak_{counter}_bytes"] for phase in self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The first with the highest peak; a part is in its phase."""
        return max(
            (name for name in ORDER if name in self.phases and name != LOSS),
            key=lambda phase: self.phases[phase]["peak_allocated_bytes"],
        )

    def named(self) -> list[dict[str, Any]]:
        """In the step's order."""
        return [{"name": name} | self.phases[name] for name in ORDER if name in self.phases]

    def _note(self, name: str, seen: dict[str, int]) -> None:
        self.phases[name] = highest(self.phases.get(name, {}), seen)


@contextmanager
def loss_marked(model: torch.nn.Module, marks: PhaseCounters) -> Iterator[None]:
    """`marks` counts the model's loss function apart; the logits it is given live on in the model's own frame."""
    causal_lm: Any = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    compute = causal_lm.loss_function

    def marked(*args: Any, **kwargs: Any) -> torch.Tensor:
        with marks.inside(LOSS):
            return compute(*args, **kwargs)

    causal_lm.loss_function = marked
    try:
        yield
    finally:
        causal_lm.loss_function = compute


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


PRODUCTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mm": lambda x: x @ x,
    "linear with bias": lambda x: torch.nn.functional.linear(x, x, x[0]),
    "bmm": lambda x: x[None] @ x[None],
}
"""One for each way to cuBLAS and cuBLASLt."""
PRODUCT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def workspaces() -> dict[str, Any]:
    """Bytes of cuBLAS's workspaces: what the first products leave allocated, in forward's thread and in autograd's.

    `first_left_by`: by type and product, those that left something.
    """
    forward_bytes, autograd_bytes = 0, 0
    left_by: dict[str, dict[str, int]] = {}
    for dtype in PRODUCT_DTYPES:
        x = torch.zeros(64, 64, dtype=dtype, device="cuda", requires_grad=True)
        for name, product in PRODUCTS.items():
            before = torch.cuda.memory_allocated()
            product(x)
            forward = torch.cuda.memory_allocated()
            product(x).sum().backward()
            x.grad = None
            both = torch.cuda.memory_allocated()
            if both != before:
                left_by[f"{dtype}, {name}"] = {
                    "forward_thread_bytes": forward - before,
                    "autograd_thread_bytes": both - forward,
                }
            forward_bytes, autograd_bytes = forward_bytes + forward - before, autograd_bytes + both - forward
    return {
        "forward_thread_bytes": forward_bytes,
        "autograd_thread_bytes": autograd_bytes,
        "first_left_by": left_by,
        "cublas_setting_bytes": torch.backends.cuda.cublas_workspace_size(),
        "cublaslt_setting_bytes": torch.backends.cuda.cublaslt_workspace_size(),
    }


@contextmanager
def history(wanted: bool, into: dict[str, Any]) -> Iterator[None]:
    """Puts the allocator's events, compact enough to keep and complete enough to replay, in `into`."""
    if not wanted:
        yield
        return
    torch.cuda.memory._record_memory_history("all", context=None, clear_history=True, max_entries=HISTORY_ENTRIES)
    try:
        yield
        events: Any = torch.cuda.memory._snapshot().get("device_traces")
        into["allocator_history"] = packed(compact(events[0]))
    finally:
        torch.cuda.memory._record_memory_history(None)


def compact(events: Iterable[dict[str, Any]]) -> list[int]:
    """Requested bytes of each allocation in order; −d where the d-th latest allocation is freed.

    Distances, because those of equal layers are equal and so compress. Left out: frees of what was there before.
    """
    compacted: list[int] = []
    alive: dict[int, int] = {}
    allocations = 0
    for event in events:
        if event["action"] == "alloc":
            allocations += 1
            alive[event["addr"]] = allocations
            compacted.append(event["size"])
        elif event["action"] == "free_completed" and event["addr"] in alive:
            compacted.append(alive.pop(event["addr"]) - allocations - 1)
    return compacted


def packed(history: list[int]) -> str:
    """As JSON, compressed, in base64."""
    return base64.b64encode(zlib.compress(json.dumps(history, separators=(",", ":")).encode(), 9)).decode()


def profiled(step: Callable[[], object]) -> dict[str, Any]:
    """Kernel seconds by kind, matmul FLOPs and the attention backend of one step, as torch's profiler sees it."""
    return summary(kineto_events(step, torch.profiler.ProfilerActivity.CUDA))


def kineto_events(run: Callable[[], Any], *more: torch.profiler.ProfilerActivity) -> list[Any]:
    """The profiler's own events of `run`, by start: its Python events take a minute for what these take a second."""
    activities = [torch.profiler.ProfilerActivity.CPU, *more]
    with torch.profiler.profile(activities=activities, with_flops=True) as profile:
        run()
        if more:
            torch.cuda.synchronize()
    found: Any = profile.profiler
    return sorted(found.kineto_results.events(), key=lambda event: (event.start_ns(), -event.duration_ns()))


def summary(events: Iterable[Any]) -> dict[str, Any]:
    """The numbers kept of a profile's events, which are operators (on the CPU) and kernels (on the GPU)."""
    seconds: dict[str, float] = defaultdict(float)
    operators = []
    for event in events:
        if event.device_type().name == "CPU":
            operators.append(event)
        elif not event.is_user_annotation():  # it spans kernels that have events of their own
            seconds[kernel_kind(event.name())] += event.duration_ns() / 1e9
    return {
        "kernel_seconds": dict(seconds),
        "matmul_flops": sum(event.flops() for event in outermost(operators) if event.name() in MATMULS),
        "sdpa_backends": sdpa_backends(operators),
    }


def sdpa_backends(operators: Iterable[Any]) -> list[str]:
    """The kernels that scaled_dot_product_attention was sent to."""
    return sorted({BACKEND_OPERATORS[event.name()] for event in operators if event.name() in BACKEND_OPERATORS})


def outermost(operators: Iterable[Any]) -> Iterator[Any]:
    """Operators, by start, that are in no call of the same name: autocast calls them again with cast inputs."""
    ends: dict[tuple[int, str], int] = {}
    for event in operators:
        place = event.start_thread_id(), event.name()
        if event.end_ns() > ends.get(place, 0):
            ends[place] = event.end_ns()
            yield event


def kernel_kind(name: str) -> str:
    lower = name.lower()
    return next((kind for kind, pattern in KERNEL_KINDS.items() if re.search(pattern, lower)), "other")
