"""Classification heads: one label for a whole sequence, read off its last token or, in an encoder, its first.

GenericForSequenceClassification in modeling_layers.py and GPT2ForSequenceClassification (transformers 5.23.0), whose
loss is a cross-entropy of int64 labels, or one of numbers. Of decoders the config is taken to name a padding token,
without which these models refuse more than one sequence.
"""

from collections.abc import Mapping
from dataclasses import replace

from .architecture import Architecture
from .dtype import DType
from .errors import ConfigError
from .kinds import Head
from .ledger import Component, Gradient, Kind, Row, Tensor
from .losses import unshifted_cross_entropy
from .operators import TOKENS, Numerics, dropped, linear, stamped
from .primitives import cast, frame, like
from .scenario import AdapterKind, Implementation, Loss, ProblemType, Scenario

SCORE = "score"
"""The head of decoders."""
CLASSIFIERS = {
    **dict.fromkeys(("gpt2", "llama", "mistral", "qwen2", "qwen3"), (SCORE,)),
    **dict.fromkeys(("bert", "deberta-v2"), ("classifier",)),
    **dict.fromkeys(("roberta", "xlm-roberta"), ("classifier.dense", "classifier.out_proj")),
    "vit": ("classifier",),
}
"""The model types whose head is built, and its linear modules."""
LOGITS = "logits"
"""What the outputs hold."""
LABELS = Tensor("labels", ("B",), DType.INT64, Kind.INPUTS)
NUMBERS = Tensor("labels", ("B", "U"), DType.FP32, Kind.INPUTS)
"""Labels that are numbers, or say of each label whether it holds."""


def with_classifier(architecture: Architecture, num_labels: int, field: str) -> Architecture:
    """`architecture` with a head of `num_labels`, as `field` asks for. The embedding is tied to no such head."""
    family = architecture.model_type
    if family not in CLASSIFIERS:
        built = ", ".join(CLASSIFIERS)
        raise ConfigError(
            field,
            num_labels,
            f"a classification head of {family} is not supported yet; supported: {built}",
        )
    return replace(architecture, num_labels=num_labels, tied_embeddings=False)


ADAPTERS_OF_OTHER_HEADS = frozenset({AdapterKind.LORA, AdapterKind.IA3})
"""Those whose rows with another head than a causal language model's are traced."""


def check_head(scenario: Scenario, architecture: Architecture) -> None:
    """Raise ConfigError for what is not built with another head than a causal language model's."""
    head = architecture.head
    _check_problem(scenario, architecture)
    if head is Head.CAUSAL_LM:
        return
    if scenario.implementation is not Implementation.TRANSFORMERS:
        raise ConfigError("implementation", scenario.implementation.value, f"should be transformers with a {head} head")
    if scenario.loss is not Loss.CROSS_ENTROPY:
        raise ConfigError("loss", scenario.loss.value, f"should be cross-entropy with a {head} head")
    adapter = scenario.adapter
    if adapter is not None and adapter.kind not in ADAPTERS_OF_OTHER_HEADS:
        supported = ", ".join(sorted(ADAPTERS_OF_OTHER_HEADS))
        raise ConfigError(
            "adapter.kind", adapter.kind.value, f"is not supported yet with a {head} head; supported: {supported}"
        )


def _check_problem(scenario: Scenario, architecture: Architecture) -> None:
    if scenario.problem_type is not None and architecture.num_labels is None:
        problem = "is read with a classification head only: num_labels, or a config that names one"
        raise ConfigError("problem_type", scenario.problem_type.value, problem)
    if architecture.problem is ProblemType.SINGLE_LABEL and architecture.num_labels == 1:
        raise ConfigError("num_labels", 1, f"should be at least 2 with problem_type = {ProblemType.SINGLE_LABEL}")


def _loss(logits: Tensor, problem: ProblemType | None, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """ForSequenceClassificationLoss: of labels that are numbers in fp32, as autocast makes the logits."""
    name = NUMERIC_LOSSES.get(problem)
    if name is None:
        return unshifted_cross_entropy(logits, LABELS, numerics)
    given, rows = logits, []
    if numerics.autocast:
        given = like(logits, "logits in fp32", dtype=DType.FP32)
        rows.append(cast(logits, given))
    losses = like(given, "losses", dtype=DType.FP32)
    logarithms = (like(given, "logarithms of probabilities"),) if problem is ProblemType.MULTI_LABEL else ()
    loss = Tensor("loss", (), DType.FP32)
    row = Row(
        name=name,
        reads=(given, NUMBERS),
        writes=(loss,),
        gradients=(Gradient(of=given),),
        saves=(given, NUMBERS),
        temporaries=(*logarithms, losses),
    )
    return stamped([*rows, row, frame(given)], Component.LOSS, "loss_function"), loss


NUMERIC_LOSSES: Mapping[ProblemType | None, str] = {
    ProblemType.REGRESSION: "mse_loss",
    ProblemType.MULTI_LABEL: "binary_cross_entropy_with_logits",
}
"""Each makes the losses of all labels before their mean (aten/src/ATen/native/Loss.cpp), and its gradient in place."""


def _picked_loss(logits: Tensor, problem: ProblemType | None, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """The loss of DebertaV2ForSequenceClassification where the config names no problem_type: of the labels that are not
    -100 and their logits, in fp32; of a single label its logits are cast to its type."""
    in_fp32 = Numerics(weights=DType.FP32, compute=DType.FP32)
    if problem is ProblemType.REGRESSION:
        wide = like(logits, LOGITS, dtype=DType.FP32)
        casts = [] if logits == wide else [cast(logits, wide)]
        rows, loss = _loss(wide, problem, in_fp32)
        return [*stamped(casts, Component.LOSS, "loss_function"), *rows], loss
    given = Tensor("labels that are given", ("B",), DType.BOOL)
    index, labels = (Tensor(name, ("B",), DType.INT64) for name in ("label_index", "labels picked"))
    picked = like(logits, "labeled_logits")
    rows = [
        Row(name="ge", reads=(LABELS,), writes=(given,)),
        Row(name="nonzero", reads=(given,), writes=(index,)),
        Row(
            name="gather",
            reads=(logits, index),
            writes=(picked,),
            gradients=(Gradient(of=logits),),
            saves=(logits, index),
        ),
        Row(name="gather", reads=(LABELS, index), writes=(labels,)),
    ]
    read = picked
    if picked.dtype is not DType.FP32:
        read = like(picked, "labeled_logits in fp32", dtype=DType.FP32)
        rows.append(cast(picked, read))
    loss_rows, loss = unshifted_cross_entropy(read, labels, in_fp32)
    return stamped([*rows, *loss_rows, frame(picked, index, labels)], Component.LOSS, "loss_function"), loss


def labelled(
    x: Tensor, module: str, problem: ProblemType | None, numerics: Numerics, *, drops: bool, picks: bool = False
) -> tuple[list[Row], Tensor]:
    """The rows from what stands for a sequence, [B, H], to the mean loss: dropout, a linear with bias. `picks`: the
    loss is of the labels that are given alone."""
    casts = picks and problem is ProblemType.REGRESSION and numerics.compute is not DType.FP32
    logits = Tensor(f"{LOGITS} before their cast" if casts else LOGITS, ("B", "U"), numerics.compute)
    dropping, given = dropped(x, f"{x.name} after dropout", on=drops)
    projecting = [*dropping, *linear(module, given, logits, ("H",), ("U",), numerics, bias=True)]
    loss_rows, loss = (_picked_loss if picks else _loss)(logits, problem, numerics)
    return [*stamped(projecting, Component.HEAD, ""), *loss_rows, frame(x, given)], loss


def classifier(
    x: Tensor, token_ids: Tensor, problem: ProblemType | None, numerics: Numerics
) -> tuple[list[Row], Tensor]:
    """The rows from the normed hidden states `x` to the mean loss.

    All tokens are scored; that of the last token which is no padding is picked.
    """
    scores = Tensor("logits of all tokens", (*TOKENS, "U"), numerics.compute)
    logits = Tensor("logits", ("B", "U"), numerics.compute)
    is_text = Tensor("tokens but padding", TOKENS, DType.INT32)
    positions = Tensor("token indices", ("S",), DType.INT32)
    last, sequences = (Tensor(name, ("B",), DType.INT64) for name in ("last token", "sequences"))
    equal = Tensor("tokens but padding as bool", TOKENS, DType.BOOL)
    picking = [
        Row(name="ne", reads=(token_ids,), writes=(equal,)),
        Row(name="to", reads=(equal,), writes=(is_text,)),
        Row(name="arange", reads=(), writes=(positions,)),
        Row(name="argmax", reads=(is_text, positions), writes=(last,), temporaries=(like(is_text, "indices of text"),)),
        Row(name="arange", reads=(), writes=(sequences,)),
        Row(
            name="index",
            reads=(scores, sequences, last),
            writes=(logits,),
            gradients=(Gradient(of=scores),),
            saves=(sequences, last),
        ),
    ]
    loss_rows, loss = _loss(logits, problem, numerics)
    rows = [
        *stamped(linear(SCORE, x, scores, ("H",), ("U",), numerics), Component.HEAD, SCORE),
        *stamped(picking, Component.HEAD, SCORE),
        *loss_rows,
        frame(x, scores, is_text, positions, last),
    ]
    return rows, loss
