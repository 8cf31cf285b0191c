"""Falcon: attention and MLP side by side, one key/value head or groups of them, positions over whole heads."""

from calc.architecture import Architecture, Dropouts, Layer
from calc.errors import ConfigError
from calc.kinds import LLAMA_ROTARY, Activation, LayerKind, ModelKind, Norm, Norms, SharedHeads, Wiring

from .fields import Fields, divides, even

MODELLED = {"alibi": False, "bias": False}
"""Fields of which one value is modelled; falcon-rw has others."""


def falcon(fields: Fields) -> Architecture:
    """FalconForCausalLM."""
    for name, value in MODELLED.items():
        fields.only(name, value)
    hidden_size = fields.size("hidden_size", "n_embed", default=4544)
    num_heads = fields.size("num_attention_heads", default=71)
    divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    num_key_value_heads, shared_heads = _key_value_heads(fields, num_heads)
    kind = _layer_kind(fields, shared_heads)
    layer = Layer(
        kind=kind,
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=even("hidden_size / num_attention_heads", hidden_size // num_heads),
        intermediate_size=fields.optional_size("ffn_hidden_size", default=None) or 4 * hidden_size,
    )
    return Architecture(
        model_type="falcon",
        kind=ModelKind(wiring=Wiring.FALCON, norm=Norm.LAYER, rotary=LLAMA_ROTARY, calls_kernels_itself=True),
        vocab_size=fields.size("vocab_size", default=65024),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=2048),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        layers=((layer, fields.size("num_hidden_layers", default=32)),),
        dropouts=Dropouts(
            attention=None if kind.parallel else fields.probability("attention_dropout", default=0.0),
            residual=fields.probability("hidden_dropout", default=0.0),
        ),
    )


def _layer_kind(fields: Fields, shared_heads: SharedHeads) -> LayerKind:
    """Attention drops nothing of its own: `attention_dropout` is read where the MLP comes after it alone."""
    is_new = fields.flag("new_decoder_architecture", default=False)
    parallel = fields.flag("parallel_attn", default=True)
    if is_new and not parallel:
        raise ConfigError("model.parallel_attn", False, "should be true with new_decoder_architecture")
    return LayerKind(
        wiring=Wiring.FALCON,
        activation=fields.activation("activation", default=Activation.GELU),
        norm=Norm.LAYER,
        norms=_norms(fields, parallel=parallel, is_new=is_new),
        rotary=LLAMA_ROTARY,
        shared_heads=shared_heads,
        parallel=parallel,
        always_masked=True,
        returns_weights=True,
    )


def _norms(fields: Fields, *, parallel: bool, is_new: bool) -> Norms:
    if not parallel:
        return Norms(before_attention="input_layernorm", before_mlp="post_attention_layernorm")
    count = fields.size("num_ln_in_parallel_attn", default=2 if is_new else 1)
    if count == 2 and is_new:
        return Norms(before_attention="ln_attn", before_mlp="ln_mlp")
    if count != 1:
        problem = "should be 1, or 2 with new_decoder_architecture"
        raise ConfigError("model.num_ln_in_parallel_attn", count, problem)
    return Norms(before_attention="input_layernorm")


def _key_value_heads(fields: Fields, num_heads: int) -> tuple[int, SharedHeads]:
    """How many there are, which `num_kv_heads` tells the new decoder alone, and how they come to all query heads."""
    if not fields.flag("new_decoder_architecture", default=False):
        if fields.flag("multi_query", default=True):
            return 1, SharedHeads.BROADCAST
        fields.only("num_kv_heads", num_heads)
        return num_heads, SharedHeads.OWN
    count = fields.size("num_kv_heads", default=num_heads)
    divides("num_kv_heads", count, "num_attention_heads", num_heads)
    if count == 1 < num_heads:
        raise ConfigError("model.num_kv_heads", 1, "is not supported yet with new_decoder_architecture")
    return count, SharedHeads.EXPANDED if count < num_heads else SharedHeads.PICKED
