"""What of RoBERTa is not BERT's: positions counted from the tokens, the heads (transformers 5.23.0, models/roberta)."""

from dataclasses import replace
from functools import partial

from calc.classification import labelled
from calc.dtype import DType
from calc.ledger import Component, Row, Section, Tensor
from calc.operators import TOKENS, Numerics, dropped, stamped
from calc.primitives import frame, like
from calc.wirings import Parts

from .bert import NORM, POSITIONS, TYPES, WORDS, bert_layer, embeddings_of
from .bert import POSITION_IDS as UNREAD_POSITION_IDS
from .encoder_head import MaskedLmHead, dense_tanh, encoder_head, first_token
from .facts import INPUT_IDS, ModelFacts, hidden_states
from .head import End

POSITION_IDS = Tensor("position_ids", TOKENS, DType.INT64)


def roberta_embeddings(facts: ModelFacts, numerics: Numerics) -> Section:
    """RobertaEmbeddings.forward."""
    types, positions = like(POSITION_IDS, "token_type_ids"), hidden_states(numerics, "position_embeddings")
    section = embeddings_of(_counted(), types, POSITION_IDS, positions, facts, numerics)
    return replace(section, modules=(WORDS, TYPES, NORM, POSITIONS))


def _counted() -> list[Row]:
    """create_position_ids_from_input_ids: the tokens that are no padding, counted."""
    is_text = Tensor("tokens but padding as bool", TOKENS, DType.BOOL)
    sums, offset = (Tensor(name, TOKENS, DType.INT64) for name in ("cumsum", "positions from 0"))
    mask, counts, later, masked = (
        Tensor(name, TOKENS, DType.INT32) for name in ("tokens but padding", "counts", "counts of all", "counts masked")
    )
    return [
        Row(name="ne", reads=(INPUT_IDS,), writes=(is_text,)),
        Row(name="to", reads=(is_text,), writes=(mask,)),
        Row(name="cumsum", reads=(mask,), writes=(sums,)),
        Row(name="to", reads=(sums,), writes=(counts,)),
        Row(name="add", reads=(counts,), writes=(later,)),
        Row(name="mul", reads=(later, mask), writes=(masked,)),
        Row(name="to", reads=(masked,), writes=(offset,)),
        Row(name="add", reads=(offset,), writes=(POSITION_IDS,)),
        frame(mask, masked),
    ]


def _classified(
    x: Tensor, outside: tuple[Tensor, ...], facts: ModelFacts, numerics: Numerics
) -> tuple[list[Row], Tensor]:
    """RobertaClassificationHead."""
    choosing, first = first_token(x)
    dropping, first = dropped(first, "first token after dropout", on=facts.classifier_dropout)
    pooling, pooled = dense_tanh("classifier.dense", first, numerics)
    classifying, loss = labelled(pooled, "classifier.out_proj", facts.problem, numerics, drops=facts.classifier_dropout)
    return [frame(*outside), *choosing, *stamped(dropping, Component.HEAD, ""), *pooling, *classifying], loss


PARTS = Parts(
    embeddings=roberta_embeddings,
    layer=bert_layer,
    end=End(embedding_weight=f"{WORDS}.weight", layers="roberta.encoder.layer"),
    head=partial(
        encoder_head,
        MaskedLmHead(dense="lm_head.dense", norm="lm_head.layer_norm", decoder="lm_head.decoder", bias_first=True),
        _classified,
    ),
    buffers=lambda facts: (UNREAD_POSITION_IDS,),
)
