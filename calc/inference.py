"""What a Scenario of task = inference means for one architecture: the sizes of prompt and output, the types, the
kernel."""

from dataclasses import replace
from typing import TYPE_CHECKING

from .adapter_choices import with_adapted_layers
from .architecture import Architecture
from .encoder_decoder import START_TOKENS, check_generation, generation_lengths
from .errors import ConfigError, listed, plain
from .generation import with_cache
from .hardware import Gpu, gpu_named
from .kinds import Head
from .paging import paging
from .plan import (
    DEFAULT_SEQUENCE_LENGTH,
    INFERENCE_FIELDS,
    NUMERICS,
    Plan,
    Workload,
    attention_kernel,
    check_experts,
    refuse_what_comes_later,
)
from .router_loss import with_router_loss
from .scenario import (
    Adapter,
    AdapterKind,
    Attention,
    CacheImplementation,
    Implementation,
    Precision,
    Scenario,
    WeightDType,
)

if TYPE_CHECKING:
    from .quantisation import Quantisation

HALF_OR_FULL = (Precision.BF16, Precision.FP16, Precision.FP32)
INSTEAD = {"micro_batch_size": "batch_size", "sequence_length": "prompt_length, output_length"}
"""What an inference takes in the place of a training's sizes."""
WEIGHTS = {
    WeightDType(numerics.weights.label): precision
    for precision, numerics in NUMERICS.items()
    if precision in HALF_OR_FULL
}
"""The types of weights that are not quantised, and the precision each stands for."""

OUTPUT_SHARE = 8
"""Of the tokens that a generation is taken to have one in so many is new, where nothing says how many are."""

READ_BY_INFERENCE = frozenset(
    {
        *("model", "gpu", "num_gpus", "task", "implementation", "precision", "attention", "parallel", "adapter"),
        *INFERENCE_FIELDS,
    }
)


def resolve_inference(
    scenario: Scenario, architecture: Architecture, own: "Quantisation | None" = None
) -> tuple[Architecture, Workload, Plan]:
    """What a generation means for `architecture`, whose config may have a quantisation of its `own`: the workload's
    sequence is the prompt."""
    refuse_what_comes_later(scenario)
    precision, quantisation = _weights(scenario, own)
    scenario = scenario.model_copy(update={"precision": precision})
    _check_generation(scenario, architecture)
    check_experts(scenario, architecture)
    if architecture.is_encoder_decoder:
        check_generation(scenario, architecture)
    architecture = with_router_loss(scenario, architecture)
    prompt_length, output_length = _context(scenario, architecture)
    workload = Workload(
        micro_batch_size=(scenario.batch_size or 1) * (scenario.num_beams or 1),
        sequence_length=prompt_length,
        output_length=output_length,
        target_length=START_TOKENS if architecture.is_encoder_decoder else 0,
    )
    architecture = replace(architecture, dropouts=architecture.dropouts.all_at(0.0))
    architecture = with_adapted_layers(scenario, architecture)
    if quantisation is not None:
        architecture, quantisation = _quantised(architecture, quantisation)
    gpu = gpu_named(scenario.gpu) if scenario.gpu is not None else None
    if quantisation is not None and scenario.page_size is not None:
        quantisation = _in_vllm(architecture, quantisation, gpu)
    pages = paging(scenario, architecture, workload, NUMERICS[precision].weights.label, gpu)
    plan = Plan(
        task=scenario.task,
        precision=precision,
        attention=_kernel(scenario, architecture, workload),
        cache_implementation=_implementation(scenario),
        adapter=_adapter(scenario, quantisation),
        quantisation=quantisation,
        num_beams=_num_beams(scenario),
        logits_to_keep=_logits_to_keep(scenario),
        **pages,
    )
    return architecture, workload, plan


def _logits_to_keep(scenario: Scenario) -> int | None:
    if scenario.logits_to_keep is not None and scenario.page_size is not None:
        raise ConfigError("logits_to_keep", scenario.logits_to_keep, "is not read with page_size")
    return scenario.logits_to_keep


BESIDE_WEIGHTS = frozenset({AdapterKind.LORA, AdapterKind.IA3})
"""Adapters that a generation runs with."""


def _adapter(scenario: Scenario, quantisation: "Quantisation | None") -> Adapter | None:
    """What stands beside the weights, not merged into them; nothing is dropped."""
    adapter = scenario.adapter
    if adapter is None:
        return None
    if adapter.kind not in BESIDE_WEIGHTS:
        raise ConfigError("adapter.kind", adapter.kind.value, "is not supported yet with task = inference")
    if scenario.page_size is not None or quantisation is not None:
        beside = "page_size" if scenario.page_size else "quantised weights"
        raise ConfigError("adapter.kind", adapter.kind.value, f"is not supported yet in inference with {beside}")
    return adapter.model_copy(update={"dropout": 0.0})


def _num_beams(scenario: Scenario) -> int | None:
    if scenario.num_beams and scenario.page_size:
        raise ConfigError("num_beams", scenario.num_beams, "is not supported yet with page_size")
    return scenario.num_beams


def _implementation(scenario: Scenario) -> CacheImplementation | None:
    """None: the cache is an engine's."""
    return None if scenario.page_size else scenario.cache_implementation or CacheImplementation.DYNAMIC


def _kernel(scenario: Scenario, architecture: Architecture, workload: Workload) -> Attention:
    """That of all passes; auto where a window begins to cut, and so to need a mask, behind the prompt."""
    prompt, num_tokens = workload.sequence_length, workload.output_length
    implementation = scenario.cache_implementation
    kernels = {attention_kernel(scenario, with_cache(architecture, workload, implementation), prompt)}
    if num_tokens:
        last = with_cache(architecture, workload, implementation, (workload.target_length or prompt) + num_tokens - 1)
        kernels.add(attention_kernel(scenario, last, 1))
    return kernels.pop() if len(kernels) == 1 else Attention.AUTO


def _weights(scenario: Scenario, own: "Quantisation | None") -> "tuple[Precision, Quantisation | None]":
    """The precision of a generation, that of the weights, or of what is not quantised; and how they are quantised. bf16
    where nothing says otherwise."""
    dtype, precision = scenario.weight_dtype, scenario.precision
    given = None if precision is Scenario.model_fields["precision"].default else precision
    if given is not None and given not in WEIGHTS.values():
        raise ConfigError("precision", given.value, f"should be one of {', '.join(WEIGHTS.values())} for inference")
    if own is not None and dtype is not None:
        raise ConfigError("weight_dtype", dtype.value, "should be left out: the model's quantization_config says it")
    if own is not None:
        return _computed(QUANTISATION_METHOD, own.method, own, given)
    if dtype is not None and dtype not in WEIGHTS:
        from .quantisation.named import named_quantisation  # few generations have quantised weights

        quantisation = named_quantisation(dtype, NUMERICS[given or Precision.BF16].compute)
        return _computed("weight_dtype", dtype.value, quantisation, given)
    named = WEIGHTS[dtype] if dtype is not None else None
    if given and named and given is not named:
        raise ConfigError(
            "weight_dtype", plain(dtype), f"should be the type that precision = {given} gives the weights"
        )
    return given or named or Precision.BF16, None


def _computed(
    field: str, value: str, quantisation: "Quantisation", given: Precision | None
) -> "tuple[Precision, Quantisation]":
    """With the precision of all that is not quantised, which `given` may name."""
    kept = quantisation.format
    if kept.forward is None:
        raise ConfigError(field, value, "is not supported yet with task = inference")
    of_dtypes = {numerics.weights: precision for precision, numerics in NUMERICS.items() if precision in HALF_OR_FULL}
    taken = [of_dtypes[each] for each in kept.dtypes]
    if given is not None and given not in taken:
        raise ConfigError("precision", given.value, f"should be {listed(taken)} with weights in {value}")
    return given or taken[0], quantisation


MOST_LAYERS = 256
"""Of quantised models; no known one has as many."""
QUANTISATION_METHOD = "model.quantization_config.quant_method"


def _quantised(architecture: Architecture, quantisation: "Quantisation") -> "tuple[Architecture, Quantisation]":
    """`architecture` with what is not quantised, or in several types, marked, layer by layer."""
    from .quantisation.gguf import MOSTLY, with_types
    from .quantisation.weights import with_kept_modules

    if architecture.num_layers > MOST_LAYERS:
        problem = f"should be at most {MOST_LAYERS} with quantised weights, which are told apart layer by layer"
        raise ConfigError("model.num_hidden_layers", architecture.num_layers, problem)
    field, value = _named(quantisation)
    if architecture.model_type in quantisation.format.not_of or architecture.is_encoder_decoder:
        raise ConfigError(field, value, f"is not supported yet for {architecture.model_type} with task = inference")
    is_mxfp4, is_gpt_oss = quantisation.format.of_experts is not None, architecture.model_type == "gpt_oss"
    if is_mxfp4 and not is_gpt_oss:
        raise ConfigError(field, value, "is for gpt_oss alone, whose experts transformers keeps so")
    if any(layer.experts for layer, _ in architecture.layers) and not is_mxfp4:
        raise ConfigError(field, value, "is not supported yet for a mixture of experts with task = inference")
    if architecture.part_of is not None:
        raise ConfigError(field, value, f"is not supported yet for the text part of {architecture.part_of}")
    if quantisation.name in MOSTLY:
        architecture, of_ends = with_types(architecture, quantisation.name)
        return architecture, replace(quantisation, types_of_ends=of_ends)
    return with_kept_modules(architecture, quantisation), quantisation


def _in_vllm(architecture: Architecture, quantisation: "Quantisation", gpu: Gpu | None) -> "Quantisation":
    """As vLLM keeps it on `gpu`. Raises ConfigError for what is not built."""
    from .quantisation.vllm import TILE, device_of, on_device
    from .quantisation.weights import shares_whole_groups

    field, value = _named(quantisation)
    if quantisation.format.in_vllm is None:
        raise ConfigError(
            field,
            value,
            "is not supported yet with page_size; supported: GPTQ (symmetric, not reordered) and AWQ with groups of 64 "
            "or 128 and a head left as it is, fp8 in blocks of 128 × 128 with dynamic activations",
        )
    if any(layer.kept_modules for layer, _ in architecture.layers):
        raise ConfigError(field, value, "is not supported yet with page_size where a linear module is left as it is")
    quantisation = on_device(quantisation, device_of(gpu))
    if not shares_whole_groups(architecture, quantisation):
        problem = f"is not supported yet with page_size for matrices whose sides are no multiples of {TILE[0]}"
        raise ConfigError(field, value, problem)
    return quantisation


def _named(quantisation: "Quantisation") -> tuple[str, str]:
    """The field that says it, and its value."""
    if quantisation.name is None:
        return QUANTISATION_METHOD, quantisation.method
    return "weight_dtype", quantisation.name.value


def check_weights(gpu: Gpu | None, plan: Plan) -> None:
    """Refuse a GPU on which transformers writes the weights out as it loads them."""
    if gpu is not None and not runs_weights(gpu, plan):
        needed = plan.quantisation.format.smallest_compute_capability if plan.quantisation else 0.0
        problem = f"should have compute capability {needed} for these weights: transformers loads them in bf16 here"
        raise ConfigError("gpu", gpu.name, problem)


def runs_weights(gpu: Gpu, plan: Plan) -> bool:
    """Whether `gpu` multiplies with the plan's weights as they are; one that runs no CUDA is taken to."""
    if plan.quantisation is None or gpu.compute_capability is None:
        return True
    return float(gpu.compute_capability) >= plan.quantisation.format.smallest_compute_capability


def _check_generation(scenario: Scenario, architecture: Architecture) -> None:
    for name, field in Scenario.model_fields.items():
        value = getattr(scenario, name)
        if name in READ_BY_INFERENCE or value == field.default:
            continue
        if name in INSTEAD:
            raise ConfigError(name, plain(value), f"is not read with task = inference; it takes {INSTEAD[name]}")
        raise ConfigError(name, plain(value), "is not read with task = inference")
    if scenario.implementation is not Implementation.TRANSFORMERS:
        raise ConfigError("implementation", scenario.implementation.value, "should be transformers for inference")
    _check_model(architecture)


def _check_model(architecture: Architecture) -> None:
    """It writes, and its cache is written down."""
    chunked = any(layer.kind.chunked for layer, _ in architecture.layers)
    if chunked or architecture.audio is not None:
        raise ConfigError("task", "inference", f"is not supported yet for {architecture.model_type}")
    if architecture.kind.head not in {Head.CAUSAL_LM, Head.SEQ2SEQ_LM}:
        raise ConfigError(
            "task", "inference", f"needs a model that writes; {architecture.model_type} generates no text"
        )
    if architecture.num_labels is not None:
        raise ConfigError("model.architectures", architecture.num_labels, "should be a language model for inference")
    if any(layer.sliding_window == 1 for layer, _ in architecture.layers):
        raise ConfigError(
            "model.sliding_window", 1, "should be at least 2 for inference: a cache of 0 tokens is not cut"
        )


def _context(scenario: Scenario, architecture: Architecture) -> tuple[int, int]:
    """The tokens of prompt and output: unless given, together as many as in training, an eighth of them new."""
    usual = min(architecture.max_position_embeddings, DEFAULT_SEQUENCE_LENGTH)
    if architecture.is_encoder_decoder:
        return generation_lengths(scenario, architecture, usual, max(1, usual // OUTPUT_SHARE))
    longest = architecture.max_position_embeddings if architecture.kind.learned_positions else None
    longest = longest or architecture.rotary_positions
    output_length = scenario.output_length
    if output_length is None:
        left = longest - (scenario.prompt_length or 0) if longest else usual
        output_length = max(1, min(usual // OUTPUT_SHARE, left))
    prompt_length = scenario.prompt_length or max(1, usual - output_length)
    if longest is not None:
        _check_positions(prompt_length, output_length, longest)
    return prompt_length, output_length


def _check_positions(prompt_length: int, output_length: int, longest: int) -> None:
    """Names the output where it is too long by itself, else the prompt."""
    field, length, most = "prompt_length", prompt_length, longest - output_length
    if most < 1:
        field, length, most = "output_length", output_length, longest - 1
    if length > most:
        problem = f"should be at most {most}: the model has {longest} positions for prompt and output"
        raise ConfigError(field, length, problem)
