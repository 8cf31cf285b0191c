"""DeBERTa-v2 and v3: encoders whose scores know the distances of their tokens (disentangled attention)."""

import json
from typing import Any

from calc.architecture import Architecture, Dropouts, Layer
from calc.errors import ConfigError
from calc.kinds import Activation, Head, LayerKind, ModelKind, Norm, RelativePositions, Softmax, Wiring

from .fields import Fields, divides

MODELLED: dict[str, Any] = {
    "tie_word_embeddings": True,
    "legacy": True,
    "conv_kernel_size": 0,
    "pooler_dropout": 0,
}
"""Fields of which one value is modelled, their default,"""
REQUIRED: dict[str, Any] = {"relative_attention": True, "norm_rel_ebd": "layer_norm"}
"""and of which it is another."""
BOTH = {"c2p", "p2c"}
"""Products of queries with distances' keys, of keys with distances' queries."""
BUCKETS, FEWEST_BUCKETS = 256, 2
"""Of the files, and of which there are two sides."""


def deberta_v2(fields: Fields) -> Architecture:
    """DebertaV2ForMaskedLM, as the files of DeBERTa-v3 have it."""
    hidden_size = fields.size("hidden_size", default=1536)
    num_heads = fields.size("num_attention_heads", default=24)
    divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    sizes = {"attention_head_size": hidden_size // num_heads}
    sizes |= dict.fromkeys(("embedding_size", "pooler_hidden_size"), hidden_size)
    for name, value in (MODELLED | sizes).items():
        fields.only(name, value)
    for name, value in REQUIRED.items():
        _require(fields, name, fields.value(name, default=None) == value, value)
    _require(fields, "pos_att_type", _pairs(fields) == BOTH, "c2p|p2c")
    _require(fields, "position_buckets", fields.value("position_buckets", default=None) is not None, BUCKETS)
    activation = fields.activation("hidden_act", default=Activation.GELU)
    dropout = fields.probability("hidden_dropout_prob", default=0.1)
    type_vocab_size = fields.size("type_vocab_size", default=0, smallest=0)
    shared = fields.flag("share_att_key", default=False)
    layer = Layer(
        kind=LayerKind(
            wiring=Wiring.DEBERTA,
            activation=activation,
            norm=Norm.LAYER,
            bidirectional=True,
            relative_positions=RelativePositions.SHARED if shared else RelativePositions.OWN,
            softmax=Softmax.PLAIN,
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.size("intermediate_size", default=6144),
    )
    return Architecture(
        model_type="deberta-v2",
        kind=ModelKind(
            wiring=Wiring.DEBERTA,
            norm=Norm.LAYER,
            head=Head.MASKED_LM,
            head_activation=activation,
            head_bias=True,
            learned_positions=fields.flag("position_biased_input", default=True),
            token_types=type_vocab_size > 0,
            writes_attention_out=True,
        ),
        vocab_size=fields.size("vocab_size", default=128100),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=512),
        type_vocab_size=type_vocab_size or None,
        num_position_buckets=2 * fields.size("position_buckets", default=BUCKETS, smallest=FEWEST_BUCKETS),
        tied_embeddings=True,
        layers=((layer, fields.size("num_hidden_layers", default=24)),),
        dropouts=Dropouts(
            embedding=dropout,
            attention=fields.probability("attention_probs_dropout_prob", default=0.1),
            residual=dropout,
            classifier=fields.probability("cls_dropout", default=dropout),
        ),
    )


def _pairs(fields: Fields) -> set[Any]:
    """`pos_att_type`, a list or one string."""
    given = fields.value("pos_att_type", default=[])
    if isinstance(given, str):
        return {each.strip() for each in given.lower().split("|")}
    return set(map(str, given)) if isinstance(given, list) else set()


def _require(fields: Fields, name: str, is_so: bool, value: Any) -> None:
    if not is_so:
        given = fields.value(name, default=None)
        raise ConfigError(f"model.{name}", given, f"is not supported yet; should be {json.dumps(value)}")
