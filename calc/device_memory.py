"""What a step or a generation needs of its device, and whether that has it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from .architecture import Architecture
from .engine import NON_TORCH_BYTES, Engine
from .generation import Generation
from .hardware import Gpu
from .memory import StepMemory
from .timeline import Phase

if TYPE_CHECKING:
    from .reserved import Reserved

HOPPER = 9
"""CUDA compute capability 9.0; its cuBLAS workspace and its successors' are larger."""
CUBLAS_WORKSPACE_BYTES = 8_519_680
CUBLAS_WORKSPACE_BYTES_HOPPER = 32 * 2**20
CUBLAS_HANDLES = 2
"""One per thread that multiplies: the forward thread and autograd's (aten/src/ATen/cuda/CublasHandlePool.cpp)."""

ASSUMED_CONTEXT_BYTES = 480 * 2**20
"""CUDA's context with lazily loaded kernels: 0.47 GiB on an A100, torch 2.1.1 (Stas Bekman, ml-engineering). Not
measured here."""


class PhaseMemory(NamedTuple):
    name: Phase
    peak_allocated_bytes: int
    end_allocated_bytes: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of the steady step. None where it is not known, or not asked (no GPU).

    `peak_reserved_bytes` and `device_bytes` are computed when first asked for.
    """

    persistent_bytes: dict[str, int]
    saved_activation_bytes: int
    autograd_saved_bytes: int
    saved_activation_bytes_per_layer: int | list[int]
    offloaded_bytes: int
    """Kept in pinned host memory; each micro-batch takes it there and back."""
    phases: tuple[PhaseMemory, ...]
    first_step_peak_allocated_bytes: int
    peak_allocated_bytes: int
    peak_phase: Phase
    peak_at: str
    """The part of the model that runs at the peak."""
    at_peak: dict[str, int]
    paged_optimizer_state_bytes: int
    """In CUDA's managed memory, not in the peak."""
    library_workspace_bytes: int | None
    assumed_context_bytes: int | None
    kv_cache_bytes: int | None
    gpu_memory_bytes: int | None
    usable_bytes: int | None
    """Of these what may be taken, which the verdict is about: all, or an engine's share (gpu_memory_utilization)."""
    fits: bool | None
    headroom_bytes: int | None
    simulate: "Callable[[], Reserved] | None" = field(repr=False, compare=False)
    """Runs the step's events through the caching allocator. None: an evaluation's are not simulated."""

    @cached_property
    def reserved(self) -> "Reserved | None":
        """The simulated allocator's counters after two steps."""
        return self.simulate() if self.simulate is not None else None

    @property
    def peak_reserved_bytes(self) -> int | None:
        """torch.cuda.max_memory_reserved(): the segments, libraries' workspaces among them."""
        return self.reserved.peak_reserved_bytes if self.reserved is not None else None

    @property
    def device_bytes(self) -> int | None:
        """What nvidia-smi shows of the process: the segments and the assumed context. None without a GPU."""
        context, reserved_bytes = self.assumed_context_bytes, self.peak_reserved_bytes
        return None if context is None or reserved_bytes is None else reserved_bytes + context

    def to_dict(self, *, reserved: bool = False) -> dict[str, Any]:
        """Reserved and device bytes are null unless `reserved` asks for them."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "simulate"}
        return fields | {
            "phases": [phase._asdict() for phase in self.phases],
            "peak_reserved_bytes": self.peak_reserved_bytes if reserved else None,
            "device_bytes": self.device_bytes if reserved else None,
        }


def memory_of_step(step: StepMemory, architecture: Architecture, gpu: Gpu | None) -> Memory:
    """Of a training or an evaluation."""
    architecture = architecture.with_frozen_layers(step.plan.frozen_layers)
    own = {
        "saved_activation_bytes": step.forward_end_bytes - step.timeline.base_bytes,
        "autograd_saved_bytes": step.hooks_bytes,
        "saved_activation_bytes_per_layer": _saved_per_layer(step, architecture),
        "offloaded_bytes": step.offloaded_bytes,
        "first_step_peak_allocated_bytes": step.first_step_peak_bytes,
        "paged_optimizer_state_bytes": step.paged_bytes,
        "kv_cache_bytes": None,
        "simulate": None if step.step.batches else partial(_simulated, step, _cublas_workspace_bytes(gpu)),
    }
    return _memory(step, gpu, own)


def memory_of_generation(step: Generation | Engine, gpu: Gpu | None) -> Memory:
    """With a cache, and nothing that backward would need."""
    nothing = ("saved_activation_bytes", "autograd_saved_bytes", "saved_activation_bytes_per_layer")
    own = dict.fromkeys((*nothing, "offloaded_bytes", "paged_optimizer_state_bytes"), 0) | {
        "first_step_peak_allocated_bytes": step.timeline.peak.peak_bytes,
        "kv_cache_bytes": step.cache_bytes,
        "simulate": None,
    }
    return _memory(step, gpu, own)


def _memory(step: StepMemory | Generation | Engine, gpu: Gpu | None, own: dict[str, Any]) -> Memory:
    """`own`: what only this task has."""
    timeline = step.timeline
    peak = timeline.peak
    handles = CUBLAS_HANDLES if isinstance(step, StepMemory) else 1
    workspaces = handles * _cublas_workspace_bytes(gpu)
    context, limit = ASSUMED_CONTEXT_BYTES, gpu.capacity_bytes if gpu else None
    if isinstance(step, Engine):
        context, limit = NON_TORCH_BYTES, step.limit_bytes
    needed = peak.peak_bytes + workspaces + context
    headroom = limit - needed if limit is not None else None
    return Memory(
        persistent_bytes={kind.value: size for kind, size in step.persistent_bytes.items()},
        phases=tuple(
            PhaseMemory(
                name=phase,
                peak_allocated_bytes=timeline.phase_peak_bytes(phase),
                end_allocated_bytes=timeline.phase_end_bytes(phase),
            )
            for phase in timeline.phases
        ),
        peak_allocated_bytes=peak.peak_bytes,
        peak_phase=peak.stretch.phase,
        peak_at=peak.stretch.label,
        at_peak={kind.value: size for kind, size in timeline.peak_by_kind(step.persistent_bytes).items()},
        library_workspace_bytes=workspaces if gpu else None,
        assumed_context_bytes=context if gpu else None,
        gpu_memory_bytes=gpu.capacity_bytes if gpu else None,
        usable_bytes=limit,
        fits=headroom >= 0 if headroom is not None else None,
        headroom_bytes=headroom,
        **own,
    )


def _simulated(step: StepMemory, workspace_bytes: int) -> "Reserved":
    from .reserved import reserved  # few answers are asked for it

    return reserved(step, forward_workspace_bytes=workspace_bytes, backward_workspace_bytes=workspace_bytes)


def _saved_per_layer(step: StepMemory, architecture: Architecture) -> int | list[int]:
    """Of the last layer of each run of equal layers, or of the unit of recomputation it ends in; one number where
    there is one run."""
    by_end = step.saved_per_layer_bytes
    ends = accumulate(count for _, count in architecture.layers)
    each = [next(saved for end, saved in by_end.items() if end >= last) for last in ends]
    return each[0] if len(each) == 1 else each


def _cublas_workspace_bytes(gpu: Gpu | None) -> int:
    """Of one handle."""
    if gpu is None or gpu.compute_capability is None:
        return 0
    hopper = float(gpu.compute_capability) >= HOPPER
    return CUBLAS_WORKSPACE_BYTES_HOPPER if hopper else CUBLAS_WORKSPACE_BYTES
