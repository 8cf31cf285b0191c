"""Classification heads: one label for a whole sequence, read off its last token or, in an encoder, its first.

GenericForSequenceClassification in modeling_layers.py and GPT2ForSequenceClassification (transformers 5.23.0), whose
loss is a cross-entropy of int64 labels. Of decoders the config is taken to name a padding token, without which these
models refuse more than one sequence.
"""

from dataclasses import replace

from .architecture import Architecture, Head
from .dtype import DType
from .errors import ConfigError
from .ledger import Component, Gradient, Kind, Row, Tensor
from .losses import unshifted_cross_entropy
from .operators import TOKENS, Numerics, dropped, linear, stamped
from .primitives import frame, like
from .scenario import AdapterKind, Implementation, Loss, Scenario

SCORE = "score"
"""The head of decoders."""
CLASSIFIERS = {
    **dict.fromkeys(("gpt2", "llama", "mistral", "qwen2", "qwen3"), (SCORE,)),
    "bert": ("classifier",),
    **dict.fromkeys(("roberta", "xlm-roberta"), ("classifier.dense", "classifier.out_proj")),
}
"""The model types whose head is built, and its linear modules."""
FEWEST_LABELS = 2
"""Of one label transformers makes a regression."""
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


ADAPTERS_OF_OTHER_HEADS = frozenset({AdapterKind.LORA, AdapterKind.IA3})
"""Those whose rows with another head than a causal language model's are traced."""


def check_head(scenario: Scenario, architecture: Architecture) -> None:
    """Raise ConfigError for what is not built with another head than a causal language model's."""
    head = architecture.head
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


def labelled(x: Tensor, module: str, numerics: Numerics, *, drops: bool) -> tuple[list[Row], Tensor]:
    """The rows from what stands for a sequence, [B, H], to the mean loss: dropout, a linear with bias."""
    logits = Tensor("logits", ("B", "U"), numerics.compute)
    dropping, given = dropped(x, f"{x.name} after dropout", on=drops)
    projecting = [*dropping, *linear(module, given, logits, ("H",), ("U",), numerics, bias=True)]
    loss_rows, loss = unshifted_cross_entropy(logits, LABELS, numerics)
    return [*stamped(projecting, Component.HEAD, ""), *loss_rows, frame(x, given)], loss


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
    loss_rows, loss = unshifted_cross_entropy(logits, LABELS, numerics)
    rows = [
        *stamped(linear(SCORE, x, scores, ("H",), ("U",), numerics), Component.HEAD, SCORE),
        *stamped(picking, Component.HEAD, SCORE),
        *loss_rows,
        frame(x, scores, is_text, positions, last),
    ]
    return rows, loss
