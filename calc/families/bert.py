"""BERT: an encoder, its norms behind attention and MLP."""

from calc.architecture import (
    Activation,
    Architecture,
    Dropouts,
    Head,
    Layer,
    LayerKind,
    ModelKind,
    Norm,
    Softmax,
    Wiring,
)

from .fields import Fields, divides


def bert(fields: Fields) -> Architecture:
    """BertForMaskedLM."""
    for name, value in (("is_decoder", False), ("add_cross_attention", False), ("tie_word_embeddings", True)):
        fields.only(name, value)
    fields.only("chunk_size_feed_forward", 0)
    hidden_size = fields.size("hidden_size", default=768)
    num_heads = fields.size("num_attention_heads", default=12)
    divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    activation = fields.activation("hidden_act", default=Activation.GELU)
    dropout = fields.probability("hidden_dropout_prob", default=0.1)
    layer = Layer(
        kind=LayerKind(
            wiring=Wiring.BERT,
            activation=activation,
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
        model_type="bert",
        kind=ModelKind(
            wiring=Wiring.BERT,
            norm=Norm.LAYER,
            head=Head.MASKED_LM,
            head_activation=activation,
            head_bias=True,
            learned_positions=True,
        ),
        vocab_size=fields.size("vocab_size", default=30522),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=512),
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
