"""What an Estimate leaves out and what it assumes, in words."""

from collections.abc import Iterator

from .architecture import Architecture
from .hardware import Gpu
from .plan import Plan, Workload
from .scenario import Attention, Implementation

MODELLED_VERSIONS = "Modelled: torch 2.13.0, transformers 5.23.0, peft 0.21.2, eager PyTorch on one GPU."


def notes(architecture: Architecture, workload: Workload, plan: Plan, gpu: Gpu | None) -> tuple[str, ...]:
    """Plain sentences, the general ones first."""
    return tuple(_notes(architecture, workload, plan, gpu))


def _notes(architecture: Architecture, workload: Workload, plan: Plan, gpu: Gpu | None) -> Iterator[str]:
    yield MODELLED_VERSIONS
    yield "peak_reserved_bytes and device_bytes are not computed yet: fragmentation is not in the verdict."
    yield "time is not computed yet; kv_cache_bytes belongs to inference, which is not supported yet."
    yield "Left out: temporaries that depend on data (the sort in the embedding's backward) or on the GPU (split reductions)."
    if gpu is not None:
        yield "Assumed in the verdict: 480 MiB for the CUDA context, as read on an A100 with torch 2.1.1; two cuBLAS workspaces, from the source."
        if gpu.usable_memory_bytes is None:
            yield f"{gpu.name}: no driver reading of its usable memory was found; the datasheet's figure is used."
        if gpu.compute_capability is None:
            yield f"{gpu.name} runs no CUDA: the ledger's temporaries are those of CUDA's kernels; library workspaces are not known and left out."
    if workload.sequence_length > architecture.max_position_embeddings:
        yield f"sequence_length = {workload.sequence_length:,} is beyond the model's max_position_embeddings = {architecture.max_position_embeddings:,}."
    if plan.attention is Attention.FLASH:
        yield "flash: the accumulators of a split forward, which the kernel chooses for short batches by the GPU's size, are left out."
    if plan.recipe is not None:
        yield f"precision = {plan.precision} is a textbook recipe ({plan.recipe.source}); assumed, no framework's step was traced for it."
    if plan.implementation is Implementation.MEGATRON:
        yield "implementation = megatron is the paper's count; assumed, its code was not traced."
