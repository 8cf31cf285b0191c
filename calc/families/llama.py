"""Llama and what differs from it in sizes, biases, norms of heads and windows alone."""

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

from calc.architecture import (
    Activation,
    Architecture,
    CacheHolder,
    Dropouts,
    Layer,
    LayerKind,
    ModelKind,
    Norm,
    QueryKeyNorm,
    Rotary,
    Wiring,
)
from calc.errors import ConfigError

from .fields import Fields, divides

Windows = tuple[tuple[int | None, int], ...]
"""Runs of layers with equal sliding windows: (window or none, how many)."""

LLAMA_LAYER = LayerKind(wiring=Wiring.LLAMA, activation=Activation.SILU, norm=Norm.RMS, rotary=Rotary.HALVES)
LLAMA_MODEL = ModelKind(wiring=Wiring.LLAMA, norm=Norm.RMS, cache_holder=CacheHolder.NOBODY)


def llama(fields: Fields) -> Architecture:
    """LlamaForCausalLM."""
    hidden_size = fields.size("hidden_size", default=4096)
    num_heads = fields.size("num_attention_heads", default=32)
    divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    attention_bias, mlp_bias = (fields.flag(name, default=False) for name in ("attention_bias", "mlp_bias"))
    return llama_like(
        fields,
        "llama",
        model=replace(LLAMA_MODEL, cache_holder=CacheHolder.OUTPUTS),
        layer=replace(LLAMA_LAYER, query_key_value_bias=attention_bias, output_bias=attention_bias, mlp_bias=mlp_bias),
        intermediate_size=11008,
        max_position_embeddings=2048,
        vocab_size=32000,
    )


def mistral(fields: Fields) -> Architecture:
    """MistralForCausalLM."""
    return llama_like(
        fields,
        "mistral",
        intermediate_size=14336,
        num_key_value_heads=8,
        max_position_embeddings=4096 * 32,
        vocab_size=32000,
        windows=lambda num_layers: ((fields.optional_size("sliding_window", default=4096), num_layers),),
    )


def qwen2(fields: Fields) -> Architecture:
    """Qwen2ForCausalLM: biases on q, k and v alone."""
    return llama_like(
        fields,
        "qwen2",
        layer=replace(LLAMA_LAYER, query_key_value_bias=True),
        model=replace(LLAMA_MODEL, always_makes_causal_mask=True),
        intermediate_size=22016,
        num_key_value_heads=32,
        max_position_embeddings=32768,
        vocab_size=151936,
        windows=lambda num_layers: qwen_windows(fields, num_layers),
    )


def qwen3(fields: Fields) -> Architecture:
    """Qwen3ForCausalLM: RMSNorm on each head's queries and keys, heads of their own size."""
    bias = fields.flag("attention_bias", default=False)
    return llama_like(
        fields,
        "qwen3",
        layer=replace(LLAMA_LAYER, query_key_value_bias=bias, output_bias=bias, query_key_norm=QueryKeyNorm.HEAD),
        model=replace(LLAMA_MODEL, always_makes_causal_mask=True),
        intermediate_size=22016,
        num_key_value_heads=32,
        head_dim=128,
        max_position_embeddings=32768,
        vocab_size=151936,
        windows=lambda num_layers: qwen_windows(fields, num_layers),
    )


def qwen_windows(fields: Fields, num_layers: int) -> Windows:
    """The layers from `max_window_layers` on attend through the window, unless `layer_types` says which do."""
    window = fields.optional_size("sliding_window", default=4096)
    if not fields.flag("use_sliding_window", default=False):
        window = None
    listed = fields.layer_types(num_layers)
    if listed is not None:
        if any(listed) and window is None:
            raise ConfigError("model.layer_types", "sliding_attention", "needs use_sliding_window and sliding_window")
        return tuple((window if slides else None, len(list(run))) for slides, run in groupby(listed))
    if window is None:
        return ((None, num_layers),)
    full = min(fields.size("max_window_layers", default=28, smallest=0), num_layers)
    return tuple((each, count) for each, count in ((None, full), (window, num_layers - full)) if count)


def llama_like(
    fields: Fields,
    model_type: str,
    *,
    layer: LayerKind = LLAMA_LAYER,
    model: ModelKind = LLAMA_MODEL,
    intermediate_size: int,
    max_position_embeddings: int,
    vocab_size: int,
    num_key_value_heads: int | None = None,
    head_dim: int | None = None,
    windows: Callable[[int], Windows] = lambda num_layers: ((None, num_layers),),
) -> Architecture:
    """Layers of one kind, with a family's defaults; without `num_key_value_heads` as many as query heads."""
    hidden_size = fields.size("hidden_size", default=4096)
    num_heads = fields.size("num_attention_heads", default=32)
    if num_key_value_heads is None or fields.is_null("num_key_value_heads"):
        num_key_value_heads = num_heads
    num_key_value_heads = fields.size("num_key_value_heads", default=num_key_value_heads)
    divides("num_key_value_heads", num_key_value_heads, "num_attention_heads", num_heads)
    head_dim = fields.optional_size("head_dim", default=None) or head_dim
    if head_dim is None:
        divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise ConfigError("model.head_dim", head_dim, "should be even: rotary positions turn pairs of its elements")
    num_layers = fields.size("num_hidden_layers", default=32)
    one = Layer(
        kind=replace(layer, activation=fields.activation("hidden_act", default=layer.activation)),
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        intermediate_size=fields.size("intermediate_size", default=intermediate_size),
    )
    return Architecture(
        model_type=model_type,
        kind=model,
        vocab_size=fields.size("vocab_size", default=vocab_size),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=max_position_embeddings),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        layers=tuple((replace(one, sliding_window=window), count) for window, count in windows(num_layers)),
        dropouts=Dropouts(attention=fields.probability("attention_dropout", default=0.0)),
    )
