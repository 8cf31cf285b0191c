"""Llama and what differs from it in sizes, biases, norms of heads and windows alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from calc.architecture import Architecture, Dropouts, Layer
from calc.errors import ConfigError
from calc.kinds import LLAMA_ROTARY, Activation, CacheHolder, LayerKind, ModelKind, Norm, QueryKeyNorm, Wiring

from .fields import MOST_RUNS, Fields, divides, even

LLAMA_LAYER = LayerKind(wiring=Wiring.LLAMA, activation=Activation.SILU, norm=Norm.RMS, rotary=LLAMA_ROTARY)
LLAMA_MODEL = ModelKind(wiring=Wiring.LLAMA, norm=Norm.RMS, rotary=LLAMA_ROTARY)
DROPS_CACHE = replace(LLAMA_MODEL, cache_holder=CacheHolder.NOBODY)

Runs = tuple[tuple[Layer, int], ...]
"""Runs of equal layers: (layer, how many)."""
Pattern = Callable[[Layer, int], Runs]
"""From one layer and the number of layers to the runs of equal ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a family's files may leave out; the names are the config's."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    """None: as many as query heads."""
    head_dim: int | None = None
    """None: hidden_size / num_attention_heads."""
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    partial_rotary_factor: float = 1.0


def llama_like(
    fields: Fields,
    model_type: str,
    defaults: Defaults,
    *,
    layer: LayerKind = LLAMA_LAYER,
    model: ModelKind = LLAMA_MODEL,
    pattern: Pattern = lambda layer, num_layers: ((layer, num_layers),),
    activation: str = "hidden_act",
    dropouts: Dropouts | None = None,
    head_dim: int | None = None,
) -> Architecture:
    """Layers of one kind, or in a pattern, with a family's defaults. `activation` is the field that names it;
    `head_dim` is given where other fields say it."""
    hidden_size = fields.size("hidden_size", default=defaults.hidden_size)
    num_heads = fields.size("num_attention_heads", default=defaults.num_attention_heads)
    num_key_value_heads = defaults.num_key_value_heads
    if num_key_value_heads is None or fields.is_null("num_key_value_heads"):
        num_key_value_heads = num_heads
    num_key_value_heads = fields.size("num_key_value_heads", default=num_key_value_heads)
    divides("num_key_value_heads", num_key_value_heads, "num_attention_heads", num_heads)
    head_dim = head_dim or fields.optional_size("head_dim", default=None) or defaults.head_dim
    if head_dim is None:
        divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
        head_dim = hidden_size // num_heads
    one = Layer(
        kind=replace(layer, activation=fields.activation(activation, default=layer.activation)),
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        rotary_dim=_rotary_dim(fields, head_dim, layer, defaults.partial_rotary_factor),
        intermediate_size=fields.size("intermediate_size", default=defaults.intermediate_size),
    )
    return Architecture(
        model_type=model_type,
        kind=model,
        vocab_size=fields.size("vocab_size", default=defaults.vocab_size),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=defaults.max_position_embeddings),
        tied_embeddings=fields.flag("tie_word_embeddings", default=defaults.tie_word_embeddings),
        layers=pattern(one, fields.size("num_hidden_layers", default=defaults.num_hidden_layers)),
        dropouts=dropouts or Dropouts(attention=fields.probability("attention_dropout", default=0.0)),
    )


def _rotary_dim(fields: Fields, head_dim: int, layer: LayerKind, share: float) -> int:
    """How many elements of a head positions turn: pairs of them."""
    if layer.rotary is not None and layer.rotary.partial:
        return fields.rotary_dim(head_dim, "partial_rotary_factor", default=share)
    return even("head_dim", head_dim)


def runs(layers: Iterable[Layer]) -> Runs:
    """Equal layers that follow each other, together."""
    return tuple((layer, len(list(equal))) for layer, equal in groupby(layers))


def sliding_but_every(fields: Fields, every: int, layer: Layer, num_layers: int, *, window: int = 4096) -> Runs:
    """The layers that `layer_types` names slide, or else all but every n-th."""
    sliding = replace(layer, sliding_window=fields.size("sliding_window", default=window))
    listed = fields.layer_types(num_layers)
    if listed is None:
        listed = [index % every != every - 1 for index in range(patterned(num_layers))]
    if not any(listed):
        raise ConfigError(
            "model.layer_types", "full_attention", "should let some layers slide: this model makes their mask"
        )
    return runs(sliding if slides else layer for slides in listed)


def patterned(num_layers: int) -> int:
    """`num_layers`, where a pattern may have so many."""
    if num_layers > MOST_RUNS:
        raise ConfigError("model.num_hidden_layers", num_layers, f"should be at most {MOST_RUNS} for a pattern")
    return num_layers


def llama(fields: Fields) -> Architecture:
    """LlamaForCausalLM."""
    hidden_size = fields.size("hidden_size", default=4096)
    num_heads = fields.size("num_attention_heads", default=32)
    divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    attention_bias, mlp_bias = (fields.flag(name, default=False) for name in ("attention_bias", "mlp_bias"))
    return llama_like(
        fields,
        "llama",
        Defaults(),
        model=replace(LLAMA_MODEL, cache_holder=CacheHolder.OUTPUTS),
        layer=replace(LLAMA_LAYER, query_key_value_bias=attention_bias, output_bias=attention_bias, mlp_bias=mlp_bias),
    )


def mistral(fields: Fields) -> Architecture:
    """MistralForCausalLM."""
    return llama_like(
        fields,
        "mistral",
        Defaults(intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=4096 * 32),
        model=DROPS_CACHE,
        pattern=one_window(fields, default=4096),
    )


def one_window(fields: Fields, *, default: int | None) -> Pattern:
    """All layers attend through `sliding_window`, or none does."""
    window = fields.optional_size("sliding_window", default=default)
    return lambda layer, num_layers: ((replace(layer, sliding_window=window), num_layers),)


QWEN = Defaults(vocab_size=151936, intermediate_size=22016, num_key_value_heads=32, max_position_embeddings=32768)


def qwen2(fields: Fields) -> Architecture:
    """Qwen2ForCausalLM: biases on q, k and v alone."""
    return llama_like(
        fields,
        "qwen2",
        QWEN,
        layer=replace(LLAMA_LAYER, query_key_value_bias=True),
        model=replace(DROPS_CACHE, always_makes_causal_mask=True),
        pattern=lambda layer, num_layers: qwen_windows(fields, layer, num_layers),
    )


def qwen3(fields: Fields) -> Architecture:
    """Qwen3ForCausalLM: RMSNorm on each head's queries and keys, heads of their own size."""
    bias = fields.flag("attention_bias", default=False)
    return llama_like(
        fields,
        "qwen3",
        replace(QWEN, head_dim=128),
        layer=replace(LLAMA_LAYER, query_key_value_bias=bias, output_bias=bias, query_key_norm=QueryKeyNorm.HEAD),
        model=replace(DROPS_CACHE, always_makes_causal_mask=True),
        pattern=lambda layer, num_layers: qwen_windows(fields, layer, num_layers),
    )


def qwen_windows(fields: Fields, layer: Layer, num_layers: int) -> Runs:
    """The layers from `max_window_layers` on attend through the window, unless `layer_types` says which do."""
    window = fields.optional_size("sliding_window", default=4096)
    if not fields.flag("use_sliding_window", default=False):
        window = None
    sliding = replace(layer, sliding_window=window)
    listed = fields.layer_types(num_layers)
    if listed is not None:
        if any(listed) and window is None:
            raise ConfigError("model.layer_types", "sliding_attention", "needs use_sliding_window and sliding_window")
        return runs(sliding if slides else layer for slides in listed)
    if window is None:
        return ((layer, num_layers),)
    full = min(fields.size("max_window_layers", default=28, smallest=0), num_layers)
    return tuple((each, count) for each, count in ((layer, full), (sliding, num_layers - full)) if count)
