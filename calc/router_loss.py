"""The auxiliary loss of a mixture's routers: load_balancing_loss_func, which the families copy from each other
(transformers 5.23.0, models/mixtral/modeling_mixtral.py).

A hook keeps each router's logits in the model's outputs. After the loss of the tokens a loop over the layers adds up
how often each expert is chosen and how probable it is; the product of both is added to the loss.

The loop's first turn is counted as the others, as if there were best experts of a layer before.
"""

from collections.abc import Iterable
from dataclasses import replace

from .architecture import Architecture, Layer
from .dtype import DType
from .errors import ConfigError
from .gradients import gradient_of
from .kinds import Mixture
from .ledger import Component, Gradient, Kind, Lent, Row, Section, Shape, Tensor
from .lifetimes import NEXT
from .operators import TOKENS, Numerics, stamped
from .primitives import add, cast, frame, like, scale, softmax
from .scenario import PREFIXED, AdapterKind, Implementation, Loss, Scenario, Task
from .timeline import Program

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "phimoe", "ernie4_5_moe")
"""Those whose model for causal language modelling computes it."""
FIELD = "output_router_logits"

EXPERTS: Shape = ("X",)
CHOSEN: Shape = (*TOKENS, "Y")
COUNTS = Tensor("tokens of experts, summed", EXPERTS, DType.FP32)
TOTAL = Tensor("probabilities of experts, summed", EXPERTS, DType.FP32)
"""Over the layers."""
AUX_LOSS = Tensor("aux_loss", (), DType.FP32)
WEIGHTED = Tensor("aux_loss · router_aux_loss_coef", (), DType.FP32)
RECORDED = "OutputRecorder"
"""The row that reads what a hook keeps."""


def with_router_loss(scenario: Scenario, architecture: Architecture) -> Architecture:
    """`architecture` with the loss or without it, as the scenario says, or else its config. Raises ConfigError where it
    cannot be."""
    asked = scenario.output_router_logits
    if asked is not None:
        layers = tuple((_recording(layer, on=asked), count) for layer, count in architecture.layers)
        architecture = replace(architecture, layers=layers)
    if has_router_loss(architecture):
        _check(scenario, architecture)
    elif asked:
        raise ConfigError(FIELD, True, f"should be false: {architecture.model_type} has no layer with experts")
    return architecture


def has_router_loss(architecture: Architecture) -> bool:
    mixtures = (_mixture(layer) for layer, _ in architecture.layers)
    return any(mixture.records_logits for mixture in mixtures if mixture)


def _mixture(layer: Layer) -> Mixture | None:
    return layer.kind.mlp if isinstance(layer.kind.mlp, Mixture) else None


def _recording(layer: Layer, *, on: bool) -> Layer:
    mixture = _mixture(layer)
    if mixture is None:
        return layer
    return replace(layer, kind=replace(layer.kind, mlp=replace(mixture, records_logits=on)))


def _check(scenario: Scenario, architecture: Architecture) -> None:
    field = FIELD if scenario.output_router_logits else f"model.{FIELD}"
    family, adapter = architecture.model_type, scenario.adapter
    if family not in FAMILIES:
        raise ConfigError(field, True, f"should be false: transformers has no auxiliary loss for {family}")
    if scenario.task is Task.INFERENCE:
        raise ConfigError(field, True, "should be false: the auxiliary loss is part of training and evaluation")
    if scenario.implementation is not Implementation.TRANSFORMERS:
        raise ConfigError(field, True, f"should be false with implementation = {scenario.implementation}")
    if scenario.loss is not Loss.CROSS_ENTROPY:
        raise ConfigError(field, True, f"is not supported yet with loss = {scenario.loss}")
    if adapter is not None and adapter.kind in PREFIXED | {AdapterKind.ADALORA}:
        raise ConfigError(field, True, f"is not supported yet with adapter.kind = {adapter.kind}")


def recorded(layer: Section) -> Section:
    """`layer` with the logits of its router in the model's outputs, and lent to the loss, where a hook keeps them."""
    logits = [tensor for row in layer.rows if row.name == RECORDED for tensor in row.reads]
    if not logits:
        return layer
    lent = (Lent(tensor=each, known_as=each, gradient=gradient_of(each), viewed=False) for each in logits)
    return replace(layer, lent=(*layer.lent, *lent), cached=(*layer.cached, *logits))


def logits_of(section: Section) -> frozenset[Tensor]:
    """What a hook keeps of its router."""
    return frozenset(each.tensor for each in section.lent) & frozenset(section.cached)


def share_of_router_loss(section: Section, numerics: Numerics) -> Section | None:
    """What the loss computes for a layer or, of the head, in the end; None for what has no router."""
    if section.name == "head":
        return _end()
    lent = tuple(each for each in section.lent if each.tensor in logits_of(section))
    return _turn(lent, numerics) if lent else None


Around = tuple[Program, Program, Program, Program]


def around_router_loss(sections: Iterable[Section], numerics: Numerics, *, differentiated: bool) -> Around:
    """Before the layers' turns and after the end, in forward and in backward."""
    logits = next(each for section in sections for each in logits_of(section))
    made = [COUNTS, TOTAL, *_best(logits, numerics)]
    gradients = [gradient_of(AUX_LOSS), gradient_of(TOTAL)] if differentiated else []
    return (
        Program([(tensor, True) for tensor in made]),
        Program([*((tensor, False) for tensor in made[2:]), (WEIGHTED, True), (WEIGHTED, False)]),
        Program([(gradient, True) for gradient in gradients[:1]]),
        Program([(gradient, False) for gradient in gradients[1:]]),
    )


def _shares(logits: Tensor, numerics: Numerics) -> Tensor:
    return like(logits, "probabilities of experts", dtype=DType.FP32 if numerics.autocast else logits.dtype)


def _best(logits: Tensor, numerics: Numerics) -> tuple[Tensor, Tensor]:
    """The probabilities of each token's experts, and which those are: held until the next turn has its own."""
    best = replace(
        like(_shares(logits, numerics), "probabilities of best experts", shape=CHOSEN), kind=Kind.TEMPORARIES
    )
    return best, replace(best, name="best experts", dtype=DType.INT64)


def _turn(lent: tuple[Lent, ...], numerics: Numerics) -> Section:
    """One of the loop."""
    [logits] = [each.tensor for each in lent]
    shares, scores = _shares(logits, numerics), logits
    rows: list[Row] = []
    # One CUDA kernel takes fp16 to an fp32 softmax (SoftMax.cpp).
    if shares.dtype is not logits.dtype and logits.dtype is not DType.FP16:
        scores = like(logits, "router logits for their loss", dtype=shares.dtype)
        rows.append(cast(logits, scores))
    before = _best(logits, numerics)
    best, indices = (replace(each, name=f"{NEXT}{each.name}") for each in before)
    held = (
        Lent(tensor=each, known_as=old, gradient=old)
        for new in ((best, indices), before)
        for each, old in zip(new, before, strict=True)
    )
    numbers = like(best, "best experts as numbers", dtype=DType.INT32)
    counts = Tensor("tokens of experts", EXPERTS, DType.INT32)
    wide = like(shares, f"{shares.name} in fp32", dtype=DType.FP32)
    summed, total = like(TOTAL, "probabilities of experts, of a layer"), like(TOTAL, f"{NEXT}{TOTAL.name}")
    is_wide = shares.dtype is DType.FP32
    rows += [
        softmax(scores, shares),
        Row(name="topk", reads=(shares, *before), writes=(best, indices)),
        Row(name="histc", reads=(indices,), writes=(counts,), temporaries=(numbers,)),
        Row(name="add", reads=(counts,), temporaries=(COUNTS,), elementwise_flops=1, elementwise_shape=EXPERTS),
        *([] if is_wide else [cast(shares, wide)]),
        _summed(shares if is_wide else wide, summed),
        add(TOTAL, summed, total),
        # What the node of the choice keeps, of which nothing comes back.
        replace(frame(best), gradients=(Gradient(of=shares),), graph=(indices,)),
    ]
    return Section(name="router loss", rows=_stamped(rows), input=TOTAL, output=total, lent=(*lent, *held))


def _summed(x: Tensor, out: Tensor) -> Row:
    """A sum; its gradient is a view of the sum's (sum_backward)."""
    gradient = Gradient(of=x, passes=True, viewed=True)
    return Row(name="sum", reads=(x,), writes=(out,), gradients=(gradient,), elementwise_flops=1)


def _end() -> Section:
    """The means over all tokens of all layers, and their product summed over the experts."""
    shares, probabilities = like(COUNTS, "tokens of experts, mean"), like(TOTAL, "probabilities of experts, mean")
    product, overall = like(TOTAL, "share·probability of experts"), like(AUX_LOSS, "overall_loss")
    rows = [
        Row(name="div", reads=(COUNTS,), writes=(shares,), elementwise_flops=1),
        scale(TOTAL, probabilities, name="div"),
        Row(
            name="mul",
            reads=(shares, probabilities),
            writes=(product,),
            gradients=(Gradient(of=probabilities, needs=(shares,)),),
            elementwise_flops=1,
        ),
        _summed(product, overall),
        scale(overall, AUX_LOSS),
        frame(COUNTS, TOTAL, shares, probabilities, overall),
    ]
    return Section(name="router loss", rows=_stamped(rows), input=TOTAL, output=AUX_LOSS, cached=(AUX_LOSS,))


def _stamped(rows: list[Row]) -> tuple[Row, ...]:
    return tuple(stamped(rows, Component.LOSS, "load_balancing_loss_func"))
