"""Heads of encoders: a masked language model's, and parts of classifiers (transformers 5.23.0, models/bert)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from calc.dtype import DType
from calc.ledger import Component, Gradient, Row, Section, Tensor
from calc.losses import LABELS, unshifted_cross_entropy
from calc.norms import NORMS
from calc.operators import Numerics, activation, linear, parameter, stamped
from calc.primitives import cast, frame, like, unary

from .facts import ModelFacts, hidden_states
from .head import End

Classifier = Callable[[Tensor, tuple[Tensor, ...], ModelFacts, Numerics], tuple[list[Row], Tensor]]
"""Of the last layer's output, what the model's own frame holds, the facts and the types: the rows and the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedLmHead:
    """What its modules are called."""

    dense: str
    norm: str
    decoder: str
    dense_bias: bool = True
    bias_first: bool = False
    """The decoder's bias is the head's own parameter, registered before its modules."""
    loss_in_fp32: bool = False
    """Logits are cast before the loss (ForMaskedLMLoss)."""


def encoder_head(
    names: MaskedLmHead,
    classifier: Classifier | None,
    facts: ModelFacts,
    end: End,
    numerics: Numerics,
    outside: tuple[Tensor, ...],
) -> Section:
    """The head of ...ForMaskedLM, or of ...ForSequenceClassification."""
    x = hidden_states(numerics)
    if facts.problem is not None and classifier is not None:
        rows, loss = classifier(x, outside, facts, numerics)
        return Section(name="head", rows=(*rows, frame(x)), input=x, output=loss)
    norm, given = [], x
    if end.final_norm:
        norm, given = NORMS[facts.kind.norm](end.final_norm, x, f"{end.final_norm} output", ("H",), numerics)
        outside = (x, *outside)
    rows, loss = _masked_lm(given, names, facts, end, numerics)
    section = Section(name="head", rows=(*norm, frame(*outside), *rows, frame(given)), input=x, output=loss)
    return replace(section, modules=(names.decoder, names.dense, names.norm)) if names.bias_first else section


def _masked_lm(
    x: Tensor, names: MaskedLmHead, facts: ModelFacts, end: End, numerics: Numerics
) -> tuple[list[Row], Tensor]:
    """Dense, activation, LayerNorm, the tied decoder with its bias, and the loss."""
    dense = Tensor(f"{names.dense} output", ("B", "S", "H"), numerics.compute)
    act, activated = activation(facts.kind.head_activation, dense, f"activation of {names.dense}", numerics)
    casts: list[Row] = []
    if activated.dtype is not numerics.weights:  # autocast runs layer_norm in fp32
        lower, activated = activated, like(activated, f"{activated.name} in fp32", dtype=numerics.weights)
        casts = [cast(lower, activated)]
    norm, normed = NORMS[facts.kind.norm](names.norm, activated, f"{names.norm} output", ("H",), numerics)
    tied = parameter(end.embedding_weight, ("V", "H"), numerics, num_columns=1) if facts.tied_embeddings else None
    bias = facts.kind.head_bias
    logits = Tensor("logits", ("B", "S", "V"), numerics.compute)
    rows = [
        *linear(names.dense, x, dense, ("H",), ("H",), numerics, bias=names.dense_bias),
        *act,
        *casts,
        *norm,
        *linear(names.decoder, normed, logits, ("H",), ("V",), numerics, bias=bias, weight=tied),
    ]
    loss_rows, loss = _loss(logits, names, numerics)
    return [*stamped(rows, Component.HEAD, names.decoder.rpartition(".")[0]), *loss_rows], loss


def _loss(logits: Tensor, names: MaskedLmHead, numerics: Numerics) -> tuple[list[Row], Tensor]:
    if not names.loss_in_fp32 or logits.dtype is DType.FP32:
        return unshifted_cross_entropy(logits, LABELS, numerics)
    wide = like(logits, "logits in fp32", dtype=DType.FP32)
    in_fp32 = Numerics(weights=DType.FP32, compute=DType.FP32)
    rows, loss = unshifted_cross_entropy(wide, LABELS, in_fp32)
    return [*stamped([cast(logits, wide)], Component.LOSS, "loss_function"), *rows, frame(wide)], loss


def first_token(x: Tensor) -> tuple[list[Row], Tensor]:
    """x[:, 0]: a view; its gradient is zeros with the token's filled in."""
    first = Tensor("first token", ("B", "H"), x.dtype)
    row = Row(name="select", reads=(x,), writes=(first,), gradients=(Gradient(of=x),), is_view=True)
    return stamped([row], Component.HEAD, ""), first


def dense_tanh(module: str, x: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """tanh(dense(x))."""
    dense = Tensor(f"{module} output", ("B", "H"), numerics.compute)
    out = like(dense, f"tanh of {module}")
    rows = [
        *linear(module, x, dense, ("H",), ("H",), numerics, bias=True),
        unary("tanh", dense, out, saves_output=True),
        frame(dense),
    ]
    return stamped(rows, Component.HEAD, module.rpartition(".")[0]), out
