"""Scenario -> Estimate: the answer, every number of it read off the ledger."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from .accuracy import nearest_accuracy
from .architecture import Architecture
from .assembly import generation, step_memory
from .checkpoint import checkpoint_bytes
from .curve import Point, curve
from .engine import NON_TORCH_BYTES, Engine
from .errors import ConfigError
from .float8_choices import check_gpu
from .flops import FLOPS_PER_PRODUCT, AttentionFlops, attention_flops, causal_flops
from .generation import Generation
from .hardware import Gpu, gpu_named
from .inference import check_weights, resolve_inference
from .inventory import TensorEntry, inventory
from .kinds import Wiring
from .memory import StepMemory
from .model_source import load_model, load_to_run
from .notes import notes
from .parts import Sum
from .plan import PAGED_FIELDS, Plan, Workload, resolve
from .scenario import Attention, CacheImplementation, Scenario, Task, num_prefix_tokens
from .timeline import Phase

if TYPE_CHECKING:
    from .reserved import Reserved
    from .roofline import InferenceTime

TRANSFORMERS_SOURCE = "transformers 5.23.0, models/{family}/modeling_{family}.py"
VLLM_SOURCE = "vLLM 0.27.1, model_executor/models/{family}.py"
MEGATRON_SOURCE = "Korthikanti et al. 2022, section 4.1"

HOPPER = 9
"""CUDA compute capability 9.0; its cuBLAS workspace and its successors' are larger."""
CUBLAS_WORKSPACE_BYTES = 8_519_680
CUBLAS_WORKSPACE_BYTES_HOPPER = 32 * 2**20
CUBLAS_HANDLES = 2
"""One per thread that multiplies: the forward thread and autograd's (aten/src/ATen/cuda/CublasHandlePool.cpp)."""

ASSUMED_CONTEXT_BYTES = 480 * 2**20
"""CUDA's context with lazily loaded kernels: 0.47 GiB on an A100, torch 2.1.1 (Stas Bekman, ml-engineering). Not
measured here."""


class Parameters(NamedTuple):
    """Numbers of parameters; tied weights once."""

    total: int
    trainable: int
    frozen: int
    active_per_token: int
    by_component: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return self._asdict()


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


class Flops(NamedTuple):
    """FLOPs of one optimizer step, all micro-batches; of inference of the whole generation."""

    forward: int
    backward: int
    recompute: int
    prefill: int | None
    """Inference: of the forward pass over the prompt."""
    decode: int | None
    """Inference: of the one that adds the last token to each sequence; None where there is none."""
    total: int
    elementwise: int
    model_flops_per_token: int
    model_flops_per_token_causal: int
    attention: AttentionFlops

    def to_dict(self) -> dict[str, Any]:
        return self._asdict() | {"attention": self.attention._asdict()}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The answer. `timeline`, `tensors` and `to_dict()` are computed when asked for."""

    scenario: Scenario
    """The question, with what it left open filled in."""
    architecture: Architecture
    parameters: Parameters
    memory: Memory
    flops: Flops
    step: StepMemory
    """Of an inference the pass over the prompt."""
    generation: Generation | None = None
    """Of an inference all of it."""
    engine: Engine | None = None
    """Of an inference with a paged cache what the engine allocates, in the place of the generation's memory."""
    evaluate: Callable[[], StepMemory | None] | None = field(repr=False, compare=False, default=None)
    """Makes the step of an evaluation between training steps. None: this answers none of training."""

    @cached_property
    def time(self) -> "InferenceTime | None":
        """Seconds of a generation on its GPU. None without a GPU, of training, of an engine, and where no peak is
        published for the type of the products."""
        if self.generation is None or self.engine is not None or self.scenario.gpu is None:
            return None
        from .roofline import inference_time  # most answers are of training

        return inference_time(self.generation, gpu_named(self.scenario.gpu))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What is left out and what is assumed, in words."""
        gpu = gpu_named(self.scenario.gpu) if self.scenario.gpu is not None else None
        return notes(self.architecture, self.step.workload, self.step.plan, gpu)

    @cached_property
    def accuracy(self) -> dict[str, Any] | None:
        """How well the formulas met the nearest recorded cases; None of an engine, which none recorded."""
        if self.engine is not None:
            return None
        return nearest_accuracy(self.architecture.model_type, self.step.plan)

    @cached_property
    def checkpoint_bytes(self) -> dict[str, int]:
        """What saving weights and optimizer states writes to files."""
        return checkpoint_bytes(self.step)

    @cached_property
    def evaluation_peak_allocated_bytes(self) -> int | None:
        """The peak of an evaluation between these training steps: as many sequences at once, no logits kept. None where
        it is not modelled (task = evaluation says why)."""
        step = self.evaluate() if self.evaluate is not None else None
        return step.timeline.peak.peak_bytes if step is not None else None

    @cached_property
    def timeline(self) -> list[Point]:
        """Allocated bytes through the step, ready to be drawn."""
        return curve((self.engine or self.generation or self.step).timeline)

    @cached_property
    def tensors(self) -> tuple[TensorEntry, ...]:
        """The ledger behind every sum, the largest first."""
        source = MEGATRON_SOURCE if self.step.step.wiring is Wiring.MEGATRON else TRANSFORMERS_SOURCE
        source = source if self.engine is None else VLLM_SOURCE
        memory = self.engine or self.generation or self.step
        return inventory(memory, source.format(family=self.architecture.model_type))

    def to_dict(self, *, reserved: bool = False) -> dict[str, Any]:
        """The JSON object of the contract; with `reserved` the simulated allocator's bytes too, some 20 ms later."""
        return {
            "scenario": self.scenario.model_dump(mode="json"),
            "model": _model_summary(self.architecture),
            "parameters": self.parameters.to_dict(),
            "memory": self.memory.to_dict(reserved=reserved)
            | {
                "checkpoint_bytes": self.checkpoint_bytes,
                "evaluation_peak_allocated_bytes": self.evaluation_peak_allocated_bytes,
                "timeline": self.timeline,
            },
            "flops": self.flops.to_dict(),
            "time": self.time.to_dict() if self.time else None,
            "engine": self.engine.to_dict(self.memory.library_workspace_bytes or 0) if self.engine else None,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "notes": list(self.notes),
            "accuracy": self.accuracy,
        }


def estimate(scenario: Scenario) -> Estimate:
    """What one step of `scenario` takes. Raises ConfigError for what cannot be answered."""
    gpu = gpu_named(scenario.gpu) if scenario.gpu is not None else None
    evaluate = None
    if scenario.task is Task.INFERENCE:
        architecture, workload, plan = resolve_inference(scenario, *load_to_run(scenario.model))
    else:
        loaded = load_model(scenario.model)
        evaluate = partial(_evaluation, scenario, loaded) if scenario.task is Task.TRAINING else None
        architecture, workload, plan = resolve(scenario, loaded)
    check_gpu(gpu, plan.float8_recipe)
    check_weights(gpu, plan)
    filled = scenario.model_copy(update=_filled(workload, plan))
    return _answer(filled, architecture, workload, plan, gpu, evaluate)


def _evaluation(scenario: Scenario, architecture: Architecture) -> StepMemory | None:
    """The evaluation of the training `scenario`; None where there is none."""
    with suppress(ConfigError):
        return step_memory(*resolve(scenario.model_copy(update={"task": Task.EVALUATION}), architecture))
    return None


def _filled(workload: Workload, plan: Plan) -> dict[str, Any]:
    """What a scenario may leave open."""
    if plan.task is not Task.INFERENCE:
        return {
            "sequence_length": workload.sequence_length,
            "target_length": workload.target_length or None,
            "attention": plan.attention,
        }
    choices = {name: getattr(plan, name) for name in ("cache_implementation", *PAGED_FIELDS)}
    chosen = {name: value for name, value in choices.items() if value is not None}
    return _sizes(workload, plan) | chosen | {"precision": plan.precision, "attention": plan.attention}


def _sizes(workload: Workload, plan: Plan) -> dict[str, Any]:
    """`workload` by the names that its task has for it."""
    if plan.task is Task.INFERENCE:
        return {
            "batch_size": workload.micro_batch_size,
            "prompt_length": workload.sequence_length,
            "output_length": workload.output_length,
        }
    return {
        "micro_batch_size": workload.micro_batch_size,
        "sequence_length": workload.sequence_length,
        "gradient_accumulation_steps": workload.gradient_accumulation_steps,
        "target_length": workload.target_length or None,
    }


def _choices(plan: Plan) -> dict[str, Any]:
    """`plan` by the names that a scenario has for it, which are its own."""
    choices = {each.name: getattr(plan, each.name) for each in fields(plan) if each.name != "quantisation"}
    choices["weight_dtype"] = plan.quantisation.name if plan.quantisation else None
    return choices | {"recompute_saved_operators": tuple(sorted(plan.recompute_saved_operators)) or None}


def estimate_plan(architecture: Architecture, workload: Workload, plan: Plan, gpu: Gpu | None = None) -> Estimate:
    """The core: what `plan` takes on `architecture` with `workload`'s sizes, whatever they were read from.

    The `scenario` of the answer names the model by its type alone.
    """
    architecture = architecture.with_prefix(num_prefix_tokens(plan.adapter))
    architecture = architecture.with_adapted_layers(plan.adapter.layers_to_transform if plan.adapter else None)
    scenario = Scenario(
        model={"model_type": architecture.model_type},
        gpu=gpu.name if gpu else None,
        num_labels=architecture.num_labels,
        problem_type=architecture.problem,
        **_sizes(workload, plan),
        **_choices(plan),
    )
    return _answer(scenario, architecture, workload, plan, gpu)


def _answer(
    scenario: Scenario,
    architecture: Architecture,
    workload: Workload,
    plan: Plan,
    gpu: Gpu | None,
    evaluate: Callable[[], StepMemory | None] | None = None,
) -> Estimate:
    engine = None
    if plan.task is Task.INFERENCE:
        whole = generation(architecture, workload, plan)
        step, flops = whole.prefill, generation_flops(whole)
        if plan.page_size is not None:
            engine = Engine(architecture, step, workload.output_length, gpu)
        allocating = engine or whole
        memory = _memory(allocating, gpu, _of_generation(allocating))
    else:
        whole, step = None, step_memory(architecture, workload, plan)
        memory, flops = _memory(step, gpu, _of_step(step, architecture, gpu)), step_flops(step, workload)
    return Estimate(
        scenario=scenario,
        architecture=architecture,
        parameters=_parameters(step),
        memory=memory,
        flops=flops,
        step=step,
        generation=whole,
        engine=engine,
        evaluate=evaluate,
    )


def _model_summary(architecture: Architecture) -> dict[str, Any]:
    layer = architecture.layers[0][0]
    return {
        "model_type": architecture.model_type,
        "num_layers": architecture.num_layers,
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": layer.intermediate_size,
        "num_attention_heads": layer.num_attention_heads,
        "num_key_value_heads": layer.num_key_value_heads,
        "head_dim": layer.head_dim,
        "max_position_embeddings": architecture.max_position_embeddings,
        "tied_embeddings": architecture.tied_embeddings,
    }


def _parameters(step: StepMemory) -> Parameters:
    by_component = {component.value: count for component, count in step.sums(Sum.PARAMETERS).items()}
    total, trainable = sum(by_component.values()), step.total(Sum.TRAINED)
    return Parameters(
        total=total,
        trainable=trainable,
        frozen=total - trainable,
        active_per_token=step.total(Sum.ACTIVE),
        by_component=by_component,
    )


def _memory(step: StepMemory | Generation | Engine, gpu: Gpu | None, of_task: dict[str, Any]) -> Memory:
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
        fits=headroom >= 0 if headroom is not None else None,
        headroom_bytes=headroom,
        **of_task,
    )


def _simulated(step: StepMemory, workspace_bytes: int) -> "Reserved":
    from .reserved import reserved  # few answers are asked for it

    return reserved(step, forward_workspace_bytes=workspace_bytes, backward_workspace_bytes=workspace_bytes)


def _of_step(step: StepMemory, architecture: Architecture, gpu: Gpu | None) -> dict[str, Any]:
    """What a training or an evaluation has beside."""
    architecture = architecture.with_frozen_layers(step.plan.frozen_layers)
    return {
        "saved_activation_bytes": step.forward_end_bytes - step.timeline.base_bytes,
        "autograd_saved_bytes": step.hooks_bytes,
        "saved_activation_bytes_per_layer": _saved_per_layer(step, architecture),
        "offloaded_bytes": step.offloaded_bytes,
        "first_step_peak_allocated_bytes": step.first_step_peak_bytes,
        "paged_optimizer_state_bytes": step.paged_bytes,
        "kv_cache_bytes": None,
        "simulate": None if step.step.batches else partial(_simulated, step, _cublas_workspace_bytes(gpu)),
    }


def _of_generation(step: Generation | Engine) -> dict[str, Any]:
    """What a generation has beside: a cache, and nothing that backward would need."""
    nothing = ("saved_activation_bytes", "autograd_saved_bytes", "saved_activation_bytes_per_layer")
    return dict.fromkeys((*nothing, "offloaded_bytes", "paged_optimizer_state_bytes"), 0) | {
        "first_step_peak_allocated_bytes": step.timeline.peak.peak_bytes,
        "kv_cache_bytes": step.cache_bytes,
        "simulate": None,
    }


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


def step_flops(step: StepMemory, workload: Workload) -> Flops:
    """FLOPs of one optimizer step: those of a micro-batch, times their number."""
    k = workload.gradient_accumulation_steps
    tokens = workload.micro_batch_size * (workload.sequence_length + workload.target_length)
    done = step.sums(Sum.PRODUCTS)
    forward, backward, recompute, needed, core = (
        FLOPS_PER_PRODUCT * done[name] for name in ("forward", "backward", "recompute", "needed", "needed_causal")
    )
    length, keys = step.sizes[0]["S"], step.sizes[0]["S+T"]
    others: dict[str, int] = {"num_prefix_tokens": keys - length}
    if step.plan.cache_implementation is CacheImplementation.STATIC:
        others = {"num_empty": keys - length if step.plan.attention is Attention.EAGER else 0}
    causal = causal_flops(core, workload.target_length or length, **others)
    return Flops(
        forward=k * forward,
        backward=k * backward,
        recompute=k * recompute,
        prefill=None,
        decode=None,
        total=k * (forward + backward + recompute),
        elementwise=k * done["elementwise"],
        model_flops_per_token=(needed + core) // tokens,
        model_flops_per_token_causal=(needed + causal) // tokens,
        attention=attention_flops(step.outline.attention, step.tables),
    )


def generation_flops(step: Generation) -> Flops:
    """FLOPs of prompt and output, each token's counted."""
    prefill = step_flops(step.prefill, step.prefill.workload)
    whole, elementwise, decode = prefill.forward, prefill.elementwise, None
    for num_tokens, *ends in step.growths:
        first, last = (step_flops(each, each.workload) for each in ends)
        whole += num_tokens * (first.forward + last.forward) // 2
        elementwise += num_tokens * (first.elementwise + last.elementwise) // 2
        decode = last.forward
    return prefill._replace(forward=whole, prefill=prefill.forward, decode=decode, total=whole, elementwise=elementwise)
