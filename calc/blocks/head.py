"""The last part of a model: the final norm, the head, the loss."""

from typing import NamedTuple

from calc.classification import classifier
from calc.ledger import Component, Gradient, Row, Section, Tensor
from calc.losses import cross_entropy, linear_loss
from calc.norms import norm_of
from calc.operators import LAST_TOKENS, TOKENS, Numerics, linear, parameter, stamped
from calc.primitives import frame, like, part, scale, soft_cap

from .facts import INPUT_IDS, ModelFacts, hidden_states


class End(NamedTuple):
    """What the parts outside of the layers are called."""

    embedding_weight: str
    final_norm: str = ""
    """Empty where there is none."""
    layers: str = "model.layers"
    """The list of layers, from the model down."""


def head(facts: ModelFacts, end: End, numerics: Numerics, outside: tuple[Tensor, ...]) -> Section:
    """The final norm, the head and the loss; `outside` is what the model's own frame held until the norm."""
    x = hidden_states(numerics)
    weight = parameter(
        end.embedding_weight if facts.tied_embeddings else "lm_head.weight", ("V", "H"), numerics, num_columns=1
    )
    rows_of = norm_of(facts.kind.norm, liger=facts.liger)
    norm, normed = rows_of(end.final_norm, x, f"{end.final_norm} output", ("H",), numerics)
    if facts.problem is not None:
        rows, loss = classifier(normed, INPUT_IDS, facts.problem, numerics)
        return Section(name="head", rows=(*norm, frame(x, *outside), *rows), input=x, output=loss)
    if facts.linear_loss is not None:
        loss_rows, loss = linear_loss(normed, weight, facts.linear_loss, numerics)
        return Section(name="head", rows=(*norm, frame(x, *outside), *loss_rows), input=x, output=loss)
    tokens = LAST_TOKENS if facts.generates and not facts.keeps_all_logits else TOKENS
    logits = Tensor("logits", (*tokens, "V"), numerics.compute)
    kept = like(normed, "hidden states of the last tokens", shape=(*tokens, "H")) if facts.generates else normed
    given = logits
    after: list[Row] = []
    if facts.kind.logits_soft_capped:
        given = like(logits, "logits before their cap")
        after = soft_cap(given, logits)
    elif facts.kind.logits_scaled:
        given = like(logits, "logits before scaling")
        after = [scale(given, logits)]
    before: list[Row] = [part(normed, (kept,))] if facts.generates else []
    read = kept
    if facts.kind.head_input_scaled:
        read = like(kept, "head input, scaled")
        before.append(scale(kept, read))
    if facts.kind.head_normalised:
        normalising, weight = _normalised(weight)
        before += normalising
    projection = [
        *before,
        *linear("lm_head", read, given, ("H",), ("V",), numerics, bias=facts.kind.head_bias, weight=weight),
        *after,
    ]
    rows = [*norm, frame(x, *outside), *stamped(projection, Component.HEAD, "lm_head")]
    if facts.generates:
        return Section(name="head", rows=(*rows, frame(normed)), input=x, output=logits)
    loss_rows, loss = cross_entropy(logits, one_sequence=facts.one_sequence, z_loss=facts.z_loss)
    return Section(name="head", rows=(*rows, *loss_rows, frame(normed)), input=x, output=loss)


def _normalised(weight: Tensor) -> tuple[list[Row], Tensor]:
    """F.normalize(weight): each row divided by its length, which is at least 1e-12 (NormHead of Baichuan 2).

    One node for the three there are: the gradient that comes by the lengths is made first, in the other's size, and
    added to it in place in the end.
    """
    length = like(weight, f"{weight.name} lengths", shape=("V", 1))
    clamped, out = like(length, f"{length.name}, clamped"), like(weight, f"{weight.name}, normalised")
    of_lengths = ("quotient", "quotient of it", "negated")
    rows = [
        Row(name="norm", reads=(weight,), writes=(length,)),
        Row(name="clamp_min", reads=(length,), writes=(clamped,)),
        Row(
            name="div",
            reads=(weight, clamped, length),
            writes=(out,),
            gradients=(Gradient(of=weight),),
            saves=(weight, length, clamped),
            backward_temporaries=tuple(like(out, f"{name} in div_backward") for name in of_lengths),
        ),
    ]
    return rows, out
