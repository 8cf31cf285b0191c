"""BERT and RoBERTa: encoders, their norms behind attention and MLP."""

from calc.architecture import Architecture, Dropouts, Layer
from calc.kinds import Activation, Head, LayerKind, ModelKind, Norm, Softmax, Wiring

from .fields import Fields, divides

MODELLED = {
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
}
"""Fields of which one value is modelled."""


def bert(fields: Fields) -> Architecture:
    """BertForMaskedLM."""
    activation = fields.activation("hidden_act", default=Activation.GELU)
    return _bert_like(fields, "bert", Wiring.BERT, vocab_size=30522, head_activation=activation)


def roberta(fields: Fields) -> Architecture:
    """RobertaForMaskedLM: positions are counted from behind the padding token's."""
    return _roberta_like(fields, "roberta", vocab_size=50265)


def xlm_roberta(fields: Fields) -> Architecture:
    """XLMRobertaForMaskedLM: RoBERTa's code, with another vocabulary."""
    return _roberta_like(fields, "xlm-roberta", vocab_size=30522)


def _roberta_like(fields: Fields, model_type: str, *, vocab_size: int) -> Architecture:
    return _bert_like(
        fields,
        model_type,
        Wiring.ROBERTA,
        vocab_size=vocab_size,
        head_activation=Activation.GELU,
        unused_positions=fields.size("pad_token_id", default=1, smallest=0) + 1,
    )


def _bert_like(
    fields: Fields,
    model_type: str,
    wiring: Wiring,
    *,
    vocab_size: int,
    head_activation: Activation,
    unused_positions: int = 0,
) -> Architecture:
    for name, value in MODELLED.items():
        fields.only(name, value)
    hidden_size = fields.size("hidden_size", default=768)
    num_heads = fields.size("num_attention_heads", default=12)
    divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    dropout = fields.probability("hidden_dropout_prob", default=0.1)
    layer = Layer(
        kind=LayerKind(
            wiring=wiring,
            activation=fields.activation("hidden_act", default=Activation.GELU),
            norm=Norm.LAYER,
            bidirectional=True,
            softmax=Softmax.PLAIN,
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.size("intermediate_size", default=3072),
    )
    return Architecture(
        model_type=model_type,
        kind=ModelKind(
            wiring=wiring,
            norm=Norm.LAYER,
            head=Head.MASKED_LM,
            head_activation=head_activation,
            head_bias=True,
            learned_positions=True,
            unused_positions=unused_positions,
        ),
        vocab_size=fields.size("vocab_size", default=vocab_size),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=512, smallest=unused_positions + 1),
        type_vocab_size=fields.size("type_vocab_size", default=2),
        tied_embeddings=True,
        layers=((layer, fields.size("num_hidden_layers", default=12)),),
        dropouts=Dropouts(
            embedding=dropout,
            attention=fields.probability("attention_probs_dropout_prob", default=0.1),
            residual=dropout,
            classifier=fields.probability("classifier_dropout", default=dropout),
        ),
    )
