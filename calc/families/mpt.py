"""MPT: ALiBi, no biases, one projection for queries, keys and values."""

from collections.abc import Mapping

from calc.architecture import Architecture, Layer
from calc.errors import ConfigError
from calc.kinds import Activation, LayerKind, ModelKind, Norm, Norms, Wiring

from .fields import Fields, divides

MODELLED = {"expansion_ratio": 4, "no_bias": True, "logit_scale": None}
MODELLED_ATTENTION = {"attn_type": "multihead_attention", "attn_pdrop": 0, "clip_qkv": None, "alibi": True}
"""Fields, and those of `attn_config`, of which one value is modelled: transformers reads some of them, others not."""


def mpt(fields: Fields) -> Architecture:
    """MptForCausalLM."""
    for name, value in MODELLED.items():
        fields.only(name, value)
    attention = fields.value("attn_config", default={})
    if not isinstance(attention, Mapping):
        raise ConfigError("model.attn_config", attention, "should be an object")
    for name, value in MODELLED_ATTENTION.items():
        Fields(attention).only(name, value)
    hidden_size = fields.size("d_model", "hidden_size", default=2048)
    num_heads = fields.size("n_heads", "num_attention_heads", default=16)
    divides("n_heads", num_heads, "d_model", hidden_size)
    layer = Layer(
        kind=LayerKind(
            wiring=Wiring.MPT,
            activation=Activation.GELU,
            norm=Norm.LAYER_WITHOUT_BIAS,
            norms=Norms(before_attention="norm_1", before_mlp="norm_2"),
            strided=frozenset("qkv"),
            returns_weights=True,
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=MODELLED["expansion_ratio"] * hidden_size,
    )
    return Architecture(
        model_type="mpt",
        kind=ModelKind(
            wiring=Wiring.MPT, norm=Norm.LAYER_WITHOUT_BIAS, learned_positions=True, writes_attention_out=True
        ),
        vocab_size=fields.size("vocab_size", default=50368),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_seq_len", default=2048),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        layers=((layer, fields.size("n_layers", "num_hidden_layers", default=24)),),
    )
