"""Classification heads: one label for a whole sequence, read off its last token.

GenericForSequenceClassification in modeling_layers.py and GPT2ForSequenceClassification (transformers 5.23.0), whose
loss is a cross-entropy of int64 labels. The config is taken to name a padding token, without which these models refuse
more than one sequence.
"""

from dataclasses import replace

from .architecture import Architecture
from .dtype import DType
from .errors import ConfigError
from .ledger import Component, Gradient, Kind, Row, Tensor
from .operators import TOKENS, Numerics, linear, stamped
from .primitives import cast, frame, like, softmax
from .scenario import AdapterKind, Implementation, Loss, Scenario

CLASSIFIERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
"""The model types whose head is built."""
FEWEST_LABELS = 2
"""Of one label transformers makes a regression."""
SCORE = "score"
"""The head's name."""
LABELS = Tensor("labels", ("B",), DType.INT64, Kind.INPUTS)


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
    if num_labels < FEWEST_LABELS:
        raise ConfigError(
            field,
            num_labels,
            "should be at least 2: of one label transformers makes a regression, not supported yet",
        )
    return replace(architecture, num_labels=num_labels, tied_embeddings=False)


ADAPTERS_OF_CLASSIFIERS = frozenset({AdapterKind.LORA, AdapterKind.IA3})
"""Those whose rows with such a head are traced."""


def check_classification(scenario: Scenario) -> None:
    """Raise ConfigError for what is not built with such a head."""
    if scenario.implementation is not Implementation.TRANSFORMERS:
        raise ConfigError(
            "implementation", scenario.implementation.value, "should be transformers with a classification head"
        )
    if scenario.loss is not Loss.CROSS_ENTROPY:
        raise ConfigError("loss", scenario.loss.value, "should be cross-entropy with a classification head")
    adapter = scenario.adapter
    if adapter is not None and adapter.kind not in ADAPTERS_OF_CLASSIFIERS:
        raise ConfigError(
            "adapter.kind",
            adapter.kind.value,
            f"is not supported yet with a classification head; supported: {', '.join(sorted(ADAPTERS_OF_CLASSIFIERS))}",
        )


def classifier(x: Tensor, token_ids: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor]:
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
    loss_rows, loss = _loss(logits, numerics)
    rows = [
        *stamped(linear(SCORE, x, scores, ("H",), ("U",), numerics), Component.HEAD, SCORE),
        *stamped(picking, Component.HEAD, SCORE),
        *stamped(loss_rows, Component.LOSS, "loss_function"),
        frame(x, scores, is_text, positions, last),
    ]
    return rows, loss


def _loss(logits: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """F.cross_entropy of logits in their own type; under autocast nll_loss alone is computed in fp32."""
    log_probabilities = like(logits, "log probabilities")
    rows = [softmax(logits, log_probabilities, name="log_softmax")]
    if numerics.autocast:
        lower, log_probabilities = log_probabilities, like(logits, "log probabilities in fp32", dtype=DType.FP32)
        rows.append(cast(lower, log_probabilities))
    loss, weight = (Tensor(name, (), log_probabilities.dtype) for name in ("loss", "number of targets"))
    rows.append(
        Row(
            name="nll_loss",
            reads=(log_probabilities, LABELS),
            writes=(loss, weight),
            gradients=(Gradient(of=log_probabilities),),
            saves=(log_probabilities, LABELS, weight),
        )
    )
    return rows, loss
