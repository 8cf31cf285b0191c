"""Scenario -> Estimate: the answer, every number of it read off the ledger."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from .accuracy import nearest_accuracy
from .architecture import Architecture
from .assembly import generation, step_memory
from .checkpoint import checkpoint_bytes
from .curve import Point, curve
from .device_memory import Memory, memory_of_generation, memory_of_step
from .engine import Engine
from .errors import ConfigError
from .float8_choices import check_gpu
from .generation import Generation
from .hardware import Gpu, gpu_named
from .inference import check_weights, resolve_inference
from .inventory import TensorEntry, inventory
from .kinds import Wiring
from .memory import StepMemory
from .model_source import load_model, load_to_run
from .notes import notes
from .plan import PAGED_FIELDS, Plan, Workload, resolve, resolve_evaluation
from .scenario import Scenario, Task, num_prefix_tokens
from .totals import Flops, Parameters, generation_flops, step_flops, step_parameters

if TYPE_CHECKING:
    from .roofline import InferenceTime

TRANSFORMERS_SOURCE = "transformers 5.23.0, models/{family}/modeling_{family}.py"
VLLM_SOURCE = "vLLM 0.27.1, model_executor/models/{family}.py"
MEGATRON_SOURCE = "Korthikanti et al. 2022, section 4.1"


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
        """Seconds of a generation on its GPU. None without a GPU, of training, and where no peak is published for the
        type of the products."""
        if self.generation is None or self.scenario.gpu is None:
            return None
        gpu = gpu_named(self.scenario.gpu)
        if self.engine is not None:
            from .engine_time import engine_time  # most answers are of training

            return engine_time(self.engine, gpu)
        from .roofline import inference_time

        return inference_time(self.generation, gpu)

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
        return step_memory(*resolve_evaluation(scenario, architecture))
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
            "batch_size": workload.micro_batch_size // (plan.num_beams or 1),
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


def estimate_plan(
    architecture: Architecture,
    workload: Workload,
    plan: Plan,
    gpu: Gpu | None = None,
    sampled_vocab_size: int | None = None,
) -> Estimate:
    """The core: what `plan` takes on `architecture` with `workload`'s sizes, whatever they were read from.

    The `scenario` of the answer names the model by its type alone. `sampled_vocab_size`: of a rank of a tensor-parallel
    model, whose engine samples from the logits of all ranks, that of the whole model.
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
    return _answer(scenario, architecture, workload, plan, gpu, sampled_vocab_size=sampled_vocab_size)


def _answer(
    scenario: Scenario,
    architecture: Architecture,
    workload: Workload,
    plan: Plan,
    gpu: Gpu | None,
    evaluate: Callable[[], StepMemory | None] | None = None,
    sampled_vocab_size: int | None = None,
) -> Estimate:
    engine = None
    if plan.task is Task.INFERENCE:
        whole = generation(architecture, workload, plan)
        step, flops = whole.prefill, generation_flops(whole)
        if plan.page_size is not None:
            engine = Engine(architecture, step, workload.output_length, gpu, sampled_vocab_size=sampled_vocab_size)
        memory = memory_of_generation(engine or whole, gpu)
    else:
        whole, step = None, step_memory(architecture, workload, plan)
        memory, flops = memory_of_step(step, architecture, gpu), step_flops(step, workload)
    return Estimate(
        scenario=scenario,
        architecture=architecture,
        parameters=step_parameters(step),
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
