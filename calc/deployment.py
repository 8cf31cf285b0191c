"""Several GPUs for one model: as one that is split over all of them, as a copy on each, or in between.

Tensor parallelism (Shoeybi et al. 2019, "Megatron-LM", section 3; vLLM's tensor_parallel_size): each rank has a share
of the heads, of every MLP's or expert's width and of the vocabulary, so a rank is a model of these sizes, and the
ledger answers it like any other. Key/value heads that are fewer than the ranks are there more than once. After each
attention and each MLP the ranks add their outputs: all-reduces of [B, S, H], two a layer, and one after the embedding.

Assumed, not measured: a ring all-reduce moves 2·(t - 1)/t of the tensor over each GPU's links at 80 % of their speed
in one direction (Stas Bekman, ml-engineering, network/README.md at 744d01e: 82 % with NCCL's ring on H200s, 80 % on
A100s), and begins after 10 µs (p2p_latency of NVIDIA's aiconfigurator, systems/*.yaml at 095f58a, there called a
correction from observations). Left out: the seconds that gathering the logits takes, NCCL's buffers, what overlaps;
requests that a balancer spreads unevenly. Of an engine each copy has pages of its own, and runs max_num_seqs at most.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .architecture import Architecture, Layer
from .device_memory import Memory
from .errors import ConfigError
from .estimation import Estimate, estimate_plan
from .hardware import Gpu, gpu_named
from .inference import resolve_inference
from .model_source import load_to_run
from .plan import Plan, Workload
from .scenario import Scenario, Task

GPUS_OF_A_MACHINE = 8
LINKS = ("nvlink", "infinity_fabric", "roce", "pcie")
"""The fastest first."""
DIRECTIONS = 2
"""The catalogue gives the speed of both together."""
LINK_SHARE = 0.8
ALL_REDUCE_SECONDS = 10e-6
ONE_GPU_ALONE = ("num_beams",)
"""What is not split yet."""
ALL_REDUCES_PER_LAYER = 2
"""After attention, and after the MLP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """`num_replicas` copies of the model, each over `tensor_parallel` GPUs."""

    tensor_parallel: int
    num_replicas: int
    batch_size: int
    """Sequences of one replica at once; the largest share of all."""
    total_batch_size: int
    most_sequences: int
    """That fit all GPUs together; 0: not one on each."""
    estimate: Estimate
    """Of one rank."""
    prefill_seconds: float | None
    seconds_per_output_token: float | None
    all_reduce_seconds_per_token: float | None
    """Of these."""

    @property
    def output_tokens_per_second(self) -> float | None:
        """Of all GPUs together, while decoding."""
        each = self.seconds_per_output_token
        return self.total_batch_size / each if each else None

    def to_dict(self) -> dict[str, Any]:
        memory = self.estimate.memory
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "estimate"}
        return own | {
            "output_tokens_per_second": self.output_tokens_per_second,
            "persistent_bytes": memory.persistent_bytes["parameters"] + memory.persistent_bytes["buffers"],
            "kv_cache_bytes": memory.kv_cache_bytes,
            "peak_allocated_bytes": memory.peak_allocated_bytes,
            "fits": memory.fits,
            "headroom_bytes": memory.headroom_bytes,
        }


def deployments(scenario: Scenario) -> tuple[Deployment, ...]:
    """Every way to give the scenario's GPUs (eight where it says one) to its `batch_size` sequences, from a copy on
    each GPU to one model over all of them, or over the eight that share a machine's links. Raises ConfigError for what
    cannot be answered."""
    if scenario.task is not Task.INFERENCE:
        raise ConfigError("task", scenario.task.value, "should be inference")
    for name in ONE_GPU_ALONE:
        if getattr(scenario, name) is not None:
            raise ConfigError(name, getattr(scenario, name), "is not supported yet with several GPUs")
    if scenario.adapter is not None:
        raise ConfigError("adapter.kind", scenario.adapter.kind.value, "is not supported yet with several GPUs")
    if scenario.gpu is None:
        raise ConfigError("gpu", None, "is required: the time depends on it")
    gpu, num_gpus = gpu_named(scenario.gpu), scenario.num_gpus if scenario.num_gpus > 1 else GPUS_OF_A_MACHINE
    total = scenario.batch_size or 1
    one = scenario.model_copy(update={"num_gpus": 1, "batch_size": 1})
    architecture, workload, plan = resolve_inference(one, *load_to_run(scenario.model))
    if architecture.is_encoder_decoder:  # whose decoder has three all-reduces a layer
        raise ConfigError("num_gpus", num_gpus, "is not supported yet for an encoder-decoder")
    found = tuple(_ways(architecture, workload, plan, gpu, num_gpus, total))
    if not found:
        at_once = num_gpus * (plan.max_num_seqs or 0)
        raise ConfigError("batch_size", total, f"should be at most {at_once}: max_num_seqs of {num_gpus} copies")
    return found


def _ways(
    architecture: Architecture, workload: Workload, plan: Plan, gpu: Gpu, num_gpus: int, total: int
) -> Iterator[Deployment]:
    """Those whose copies run all of their sequences at once."""
    for ranks in (size for size in range(1, GPUS_OF_A_MACHINE + 1) if num_gpus % size == 0):
        rank = rank_of(architecture, ranks)
        if rank is None or (ranks > 1 and not _shares_weights(rank, plan)):
            continue
        share = -(-total // (num_gpus // ranks))
        if plan.max_num_seqs is not None and share > plan.max_num_seqs:
            continue
        of_rank = replace(workload, micro_batch_size=share)
        answer = estimate_plan(rank, of_rank, plan, gpu, architecture.vocab_size)
        most = _most_sequences(answer, gpu) * (num_gpus // ranks)
        yield _deployment(answer, of_rank, gpu, ranks, num_gpus // ranks, total, most)


def _shares_weights(rank: Architecture, plan: Plan) -> bool:
    """vLLM splits quantised weights between their groups only."""
    if plan.quantisation is None:
        return True
    from .quantisation.weights import shares_whole_groups  # few models are quantised

    return shares_whole_groups(rank, plan.quantisation)


def _most_sequences(answer: Estimate, gpu: Gpu) -> int:
    """That one rank has memory for; each takes more than its cache."""
    rank, workload, plan = answer.architecture, answer.step.workload, answer.step.plan
    if answer.engine is not None:
        return answer.engine.to_dict(answer.memory.library_workspace_bytes or 0)["most_sequences"]

    def memory(batch_size: int) -> Memory:
        return estimate_plan(rank, replace(workload, micro_batch_size=batch_size), plan, gpu).memory

    bound = gpu.capacity_bytes // max(1, memory(1).kv_cache_bytes or 0)
    return bisect_left(range(1, bound + 1), True, key=lambda batch_size: not memory(batch_size).fits)


def rank_of(architecture: Architecture, ranks: int) -> Architecture | None:
    """The model that each of `ranks` GPUs has; None where heads or widths cannot be split so."""
    if ranks == 1:
        return architecture
    layers = [(_rank_of_layer(layer, ranks), count) for layer, count in architecture.layers]
    whole = [(layer, count) for layer, count in layers if layer is not None]
    if len(whole) < len(layers):
        return None
    return replace(architecture, layers=tuple(whole), vocab_size=-(-architecture.vocab_size // ranks))


def _rank_of_layer(layer: Layer, ranks: int) -> Layer | None:
    """vLLM's rule: ranks divide the query heads, and the key/value heads or are a multiple of them."""
    heads, pairs, experts = layer.num_attention_heads, layer.num_key_value_heads, layer.experts
    shared = experts.shared_intermediate_size if experts else 0
    is_even = all(size % ranks == 0 for size in (heads, layer.intermediate_size, shared))
    if not is_even or (pairs % ranks and ranks % pairs):
        return None
    return replace(
        layer,
        num_attention_heads=heads // ranks,
        num_key_value_heads=max(1, pairs // ranks),
        intermediate_size=layer.intermediate_size // ranks,
        experts=replace(experts, shared_intermediate_size=shared // ranks) if experts else None,
    )


def _deployment(
    answer: Estimate, workload: Workload, gpu: Gpu, ranks: int, num_replicas: int, total: int, most: int
) -> Deployment:
    time, engine = answer.time, answer.engine
    prompt_tokens, passes = workload.micro_batch_size * workload.sequence_length, 1
    if engine is not None:
        prompt_tokens, passes = sum(each.tokens for each in engine.prompts), engine.prefill_passes
    token = all_reduce_seconds(answer, workload.micro_batch_size, gpu, ranks)
    prompt = all_reduce_seconds(answer, prompt_tokens, gpu, ranks, passes)
    return Deployment(
        tensor_parallel=ranks,
        num_replicas=num_replicas,
        batch_size=workload.micro_batch_size,
        total_batch_size=total,
        most_sequences=most,
        estimate=answer,
        prefill_seconds=_sum(time.prefill_seconds if time else None, prompt),
        seconds_per_output_token=_sum(time.seconds_per_output_token if time else None, token),
        all_reduce_seconds_per_token=token,
    )


def _sum(computing: float | None, links: float | None) -> float | None:
    """None where one is not known."""
    return None if computing is None or links is None else computing + links


def all_reduce_seconds(answer: Estimate, num_tokens: int, gpu: Gpu, ranks: int, num_passes: int = 1) -> float | None:
    """Of `num_passes` over `num_tokens` together. None where the speed of the GPU's links is not known."""
    if ranks == 1:
        return 0.0
    speed = next((gpu.link_bytes_per_second[link] for link in LINKS if link in gpu.link_bytes_per_second), None)
    if speed is None:
        return None
    architecture = answer.architecture
    num_all_reduces = ALL_REDUCES_PER_LAYER * architecture.num_layers + 1
    tensor_bytes = answer.step.plan.numerics.compute.nbytes(num_tokens * architecture.hidden_size)
    moved_bytes = 2 * (ranks - 1) / ranks * tensor_bytes
    return num_all_reduces * (num_passes * ALL_REDUCE_SECONDS + moved_bytes / (speed / DIRECTIONS * LINK_SHARE))
