"""Numbers of parameters and FLOPs, added up over a step or a generation."""

from typing import Any, NamedTuple

from .flops import FLOPS_PER_PRODUCT, AttentionFlops, attention_flops, causal_flops
from .generation import Generation
from .memory import StepMemory
from .parts import Sum
from .plan import Workload
from .scenario import Attention, CacheImplementation


class Parameters(NamedTuple):
    """Numbers of parameters; tied weights once."""

    total: int
    trainable: int
    frozen: int
    active_per_token: int
    by_component: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return self._asdict()


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


def step_parameters(step: StepMemory) -> Parameters:
    by_component = {component.value: count for component, count in step.sums(Sum.PARAMETERS).items()}
    total, trainable = sum(by_component.values()), step.total(Sum.TRAINED)
    return Parameters(
        total=total,
        trainable=trainable,
        frozen=total - trainable,
        active_per_token=step.total(Sum.ACTIVE),
        by_component=by_component,
    )


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
