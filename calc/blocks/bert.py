"""BERT's embeddings, layer and heads (transformers 5.23.0, models/bert)."""

from calc.attention import HEADS
from calc.classification import labelled
from calc.dtype import DType
from calc.ledger import Component, Gradient, Kind, Row, Section, Tensor
from calc.lifetimes import NEXT
from calc.losses import LABELS, unshifted_cross_entropy
from calc.norms import layer_norm
from calc.operators import Numerics, activation, dropped, embedding, linear, parameter, stamped
from calc.primitives import add, cast, frame, like, unary, view
from calc.wirings import Parts

from .attention import attention, copies_key_gradient
from .facts import INPUT_IDS, LayerFacts, ModelFacts, hidden_states
from .head import End

POSITION_IDS = Tensor("embeddings.position_ids", (1, "P"), DType.INT64, Kind.BUFFERS)
TYPE_IDS = Tensor("embeddings.token_type_ids", (1, "P"), DType.INT64, Kind.BUFFERS)
"""Zeros: the model is given none."""


def bert_embeddings(facts: ModelFacts, numerics: Numerics) -> Section:
    """BertEmbeddings.forward: token, type and position embeddings, their norm, dropout."""
    types = Tensor("token_type_ids", (1, "S"), DType.INT64)
    words, of_types, both, total = (
        hidden_states(numerics, name)
        for name in ("inputs_embeds", "token_type_embeddings", "embeddings without positions", "embeddings")
    )
    positions = Tensor("position_embeddings", ("S", "H"), numerics.weights)
    norm, normed = layer_norm("embeddings.LayerNorm", total, "embeddings.LayerNorm output", ("H",), numerics)
    dropping, output = dropped(normed, "embeddings after dropout", on=facts.embedding_dropout)
    word_table, type_table, position_table = (
        parameter(f"embeddings.{name}_embeddings.weight", (rows, "H"), numerics, num_columns=1)
        for name, rows in (("word", "V"), ("token_type", "J"), ("position", "P"))
    )
    rows = [
        Row(name="gather", reads=(TYPE_IDS, POSITION_IDS), writes=(types,)),
        embedding(word_table, INPUT_IDS, words),
        embedding(type_table, types, of_types),
        add(words, of_types, both),
        embedding(position_table, POSITION_IDS, positions),
        add(both, positions, total, one_sequence=facts.one_sequence),
        *norm,
        *dropping,
        frame(words, of_types, positions, types),
    ]
    return Section(
        name="embedding",
        rows=tuple(stamped(rows, Component.EMBEDDING, "embeddings")),
        output=output,
        held=(output,),
        leaves=(words,),
        modules=tuple(f"embeddings.{name}_embeddings" for name in ("word", "position", "token_type")),
    )


def bert_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """BertLayer: norms behind attention and MLP."""
    x = hidden_states(numerics)
    attending, attended, weights = _attention(x, facts, numerics)
    drop_1, attended = dropped(attended, "attention.output after dropout", on=facts.residual_dropout)
    adding, middle = _added("attention.output", attended, x, "hidden_states after attention", numerics)
    expanding, activated, down = _mlp(middle, facts, numerics)
    drop_2, down = dropped(down, "output after dropout", on=facts.residual_dropout)
    adding_2, output = _added("output", down, middle, f"{NEXT}hidden_states", numerics)
    rows = [
        *stamped([*attending, *drop_1], Component.ATTENTION, "attention"),
        *adding,
        *stamped([*expanding, *drop_2], Component.MLP, ""),
        *adding_2,
        frame(activated),
        frame(x, middle, *weights),
    ]
    return Section(name="layer", rows=tuple(rows), input=x, output=output)


def _added(module: str, x: Tensor, residual: Tensor, name: str, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """The end of BertSelfOutput and of BertOutput: LayerNorm(x + residual)."""
    total = like(residual, f"{module} and residual")
    norm, out = layer_norm(f"{module}.LayerNorm", total, name, ("H",), numerics)
    return [add(x, residual, total), *norm, frame(x)], out


def _mlp(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, Tensor]:
    """BertIntermediate, the projection of BertOutput: the rows, what the layer's frame holds, the output."""
    up = Tensor("intermediate.dense output", ("B", "S", "F"), numerics.linear)
    act, activated = activation(facts.kind.activation, up, "activation output", numerics)
    down = Tensor("output.dense output", ("B", "S", "H"), numerics.linear)
    rows = [
        *linear("intermediate.dense", x, up, ("H",), ("F",), numerics, bias=True),
        *act,
        *linear("output.dense", activated, down, ("F",), ("H",), numerics, bias=True),
    ]
    return rows, activated, down


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """BertSelfAttention and the projection of BertSelfOutput."""
    core = facts.core
    copies = core.gradients_by_head and not core.one_head
    projections = (("query", "q", copies), ("key", "k", copies_key_gradient(core)), ("value", "v", copies))
    projecting: list[Row] = []
    heads: list[Tensor] = []
    for module, name, copied in projections:
        flat, head = (Tensor(each, HEADS, numerics.linear) for each in (f"{module} output", name))
        projecting += linear(f"attention.self.{module}", x, flat, ("H",), ("N", "D"), numerics, bias=True)
        projecting.append(view(flat, head, copies_gradient=copied))
        heads.append(head)
    q, k, v = heads
    core_rows, out, weights = attention(q, k, v, facts, numerics, positions=None)
    projected = Tensor("attention.output.dense output", ("B", "S", "H"), numerics.compute)
    rows = [
        *projecting,
        *core_rows,
        frame(q, k, v),
        *linear("attention.output.dense", out, projected, ("N", "D"), ("H",), numerics, bias=True),
    ]
    return rows, projected, weights


def bert_head(facts: ModelFacts, end: End, numerics: Numerics, outside: tuple[Tensor, ...]) -> Section:
    """BertForMaskedLM or BertForSequenceClassification behind the last layer."""
    x = hidden_states(numerics)
    if facts.classifies:
        pooling, pooled = _pooler(x, numerics)
        classifying, loss = labelled(pooled, "classifier", numerics, drops=facts.classifier_dropout)
        rows = [*pooling, frame(*outside), *classifying]
    else:
        transforming, transformed = _transform(x, facts, numerics)
        predicting, loss = _prediction(transformed, end, numerics)
        rows = [frame(*outside), *transforming, *predicting]
    return Section(name="head", rows=(*rows, frame(x)), input=x, output=loss)


def _transform(x: Tensor, facts: ModelFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """BertPredictionHeadTransform: dense, activation, LayerNorm."""
    module = "cls.predictions.transform"
    dense = Tensor(f"{module}.dense output", ("B", "S", "H"), numerics.compute)
    act, activated = activation(facts.kind.head_activation, dense, f"{module} activation", numerics)
    casts: list[Row] = []
    if activated.dtype is not numerics.weights:  # autocast runs layer_norm in fp32
        lower, activated = activated, like(activated, f"{module} activation in fp32", dtype=numerics.weights)
        casts = [cast(lower, activated)]
    norm, out = layer_norm(f"{module}.LayerNorm", activated, f"{module} output", ("H",), numerics)
    rows = [*linear(f"{module}.dense", x, dense, ("H",), ("H",), numerics, bias=True), *act, *casts, *norm]
    return stamped(rows, Component.HEAD, module), out


def _prediction(x: Tensor, end: End, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """The tied decoder with its bias, and the loss."""
    weight = parameter(end.embedding_weight, ("V", "H"), numerics, num_columns=1)
    logits = Tensor("logits", ("B", "S", "V"), numerics.compute)
    decoding = linear("cls.predictions.decoder", x, logits, ("H",), ("V",), numerics, bias=True, weight=weight)
    loss_rows, loss = unshifted_cross_entropy(logits, LABELS, numerics)
    return [*stamped(decoding, Component.HEAD, "cls.predictions"), *loss_rows], loss


def _pooler(x: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """BertPooler: dense and tanh on the first token."""
    first = Tensor("first token", ("B", "H"), x.dtype)
    dense = Tensor("pooler.dense output", ("B", "H"), numerics.compute)
    pooled = like(dense, "pooler output")
    rows = [
        Row(name="select", reads=(x,), writes=(first,), gradients=(Gradient(of=x),), is_view=True),
        *linear("pooler.dense", first, dense, ("H",), ("H",), numerics, bias=True),
        unary("tanh", dense, pooled, saves_output=True),
    ]
    return stamped(rows, Component.HEAD, "pooler"), pooled


PARTS = Parts(
    embeddings=bert_embeddings,
    layer=bert_layer,
    end=End(embedding_weight="embeddings.word_embeddings.weight", layers="bert.encoder.layer"),
    head=bert_head,
)
