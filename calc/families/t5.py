"""T5 and FLAN-T5: an encoder and a decoder, whose scores get a learned bias by distance."""

from dataclasses import replace

from calc.architecture import Architecture, Dropouts, Layer
from calc.errors import ConfigError
from calc.kinds import Activation, Head, LayerKind, Mlp, ModelKind, Norm, PositionBias, Softmax, Wiring

from .fields import Fields

FEED_FORWARDS = {
    "relu": (Mlp.PLAIN, Activation.RELU),
    "gated-gelu": (Mlp.GATED, Activation.GELU_NEW),
    "gated-silu": (Mlp.GATED, Activation.SILU),
}
"""`feed_forward_proj`; T5 1.1 and FLAN-T5 have gated-gelu, by which T5Config means gelu_new."""
LONGEST = 512
"""Tokens per sequence T5 was trained with (Raffel et al. 2019, section 3.1.2); positions limit nothing."""
HEAD_MULTIPLE = 8


def t5(fields: Fields) -> Architecture:
    """T5ForConditionalGeneration.

    `tie_word_embeddings: false` means a checkpoint with a head of its own, which from_pretrained leaves apart, though
    T5Config itself always ties; the output of the decoder is scaled where it is not false (T5Config.__post_init__).
    """
    fields.only("is_encoder_decoder", True)
    dropout = fields.probability("dropout_rate", default=0.1)
    num_layers = fields.size("num_layers", "num_hidden_layers", default=6)
    tied = fields.flag("tie_word_embeddings", default=True)
    first, other = (_layer(fields, bias) for bias in PositionBias)
    num_decoder_layers = fields.optional_size("num_decoder_layers", default=None) or num_layers
    encoder, decoder = (
        [
            (replace(layer, kind=_of_stack(layer.kind, decodes)), count)
            for layer, count in ((first, 1), (other, total - 1))
        ]
        for decodes, total in ((False, num_layers), (True, num_decoder_layers))
    )
    return Architecture(
        model_type="t5",
        kind=ModelKind(wiring=Wiring.T5, norm=Norm.RMS_T5, head=Head.SEQ2SEQ_LM, head_input_scaled=tied),
        vocab_size=fields.size("vocab_size", default=32128),
        hidden_size=fields.size("d_model", "hidden_size", default=512),
        max_position_embeddings=fields.size("n_positions", default=LONGEST),
        num_position_buckets=fields.size("relative_attention_num_buckets", default=32, smallest=4),
        tied_embeddings=tied,
        layers=tuple(run for run in (*encoder, *decoder) if run[1]),
        dropouts=Dropouts(embedding=dropout, attention=dropout, residual=dropout, mlp=dropout),
    )


def _layer(fields: Fields, bias: PositionBias) -> Layer:
    mlp, activation = _feed_forward(fields)
    num_heads = fields.size("num_heads", "num_attention_heads", default=8)
    head_dim = fields.size("d_kv", "head_dim", default=64)
    if head_dim % HEAD_MULTIPLE:
        raise ConfigError("model.d_kv", head_dim, f"is not supported yet; should be a multiple of {HEAD_MULTIPLE}")
    return Layer(
        kind=LayerKind(
            wiring=Wiring.T5,
            activation=activation,
            norm=Norm.RMS_T5,
            mlp=mlp,
            softmax=Softmax.PLAIN,
            position_bias=bias,
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=fields.size("d_ff", default=2048),
    )


def _of_stack(kind: LayerKind, decodes: bool) -> LayerKind:
    return replace(kind, decodes=decodes, bidirectional=not decodes)


def _feed_forward(fields: Fields) -> tuple[Mlp, Activation]:
    given = fields.value("feed_forward_proj", default="relu")
    if not isinstance(given, str) or given not in FEED_FORWARDS:
        raise ConfigError("model.feed_forward_proj", given, f"should be one of {', '.join(FEED_FORWARDS)}")
    return FEED_FORWARDS[given]
