"""config.json -> Architecture.

A file saved by transformers leaves out what equals the family's defaults, so each family states them here as its
configuration class does
(transformers 5.23.0, models/<family>/configuration_<family>.py). Adding a family is one function and one line of
`FAMILIES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from itertools import groupby
from typing import Any

from .architecture import Activation, Architecture, Dropouts, Layer, Wiring
from .errors import ConfigError
from .scenario import LARGEST_SIZE

Windows = tuple[tuple[int | None, int], ...]
"""Runs of layers with equal sliding windows: (window or none, how many)."""

MOST_RUNS = 256
"""An answer's time grows with the number of runs; no known model has as many layers."""

ACTIVATION_ALIASES = {"swish": Activation.SILU}


class Fields:
    """Reads fields of a config, with a default for those left out, and refuses what cannot be meant."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def size(self, *names: str, default: int, smallest: int = 1) -> int:
        """A whole number, at least `smallest`, on which all of `names` agree that are given; without one `default`."""
        given = [
            (name, _whole_number(name, self._config[name], smallest))
            for name in names
            if self._config.get(name) is not None
        ]
        for name, value in given[1:]:
            first, agreed = given[0]
            if value != agreed:
                raise ConfigError(f"model.{name}", value, f"contradicts {first} = {agreed}")
        return given[0][1] if given else default

    def optional_size(self, name: str, *, default: int | None) -> int | None:
        """A positive whole number, or none where it is null."""
        value = self._config.get(name, default)
        return None if value is None else _whole_number(name, value, smallest=1)

    def is_null(self, name: str) -> bool:
        return name in self._config and self._config[name] is None

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._config.get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"model.{name}", value, "should be true or false")
        return value

    def probability(self, name: str, *, default: float) -> float:
        value = self._config.get(name, default)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ConfigError(f"model.{name}", value, "should be a number from 0 to below 1")
        return float(value)

    def activation(self, name: str, *, default: Activation) -> Activation:
        value = self._config.get(name, default)
        if isinstance(value, str):
            value = ACTIVATION_ALIASES.get(value, value)
        if value not in list(Activation):
            raise ConfigError(f"model.{name}", value, f"should be one of {', '.join(Activation)}")
        return Activation(value)

    def layer_types(self, num_layers: int) -> list[bool] | None:
        """Which layers attend through a sliding window, where the config lists it."""
        value = self._config.get("layer_types")
        if value is None:
            return None
        known = ("full_attention", "sliding_attention")
        if not isinstance(value, list) or len(value) != num_layers or any(kind not in known for kind in value):
            raise ConfigError("model.layer_types", value, f"should list {num_layers} of {', '.join(known)}")
        if sum(1 for _ in groupby(value)) > MOST_RUNS:
            raise ConfigError("model.layer_types", value, f"should change at most {MOST_RUNS - 1} times")
        return [kind == "sliding_attention" for kind in value]

    def refuse(self, name: str, why: str) -> None:
        """Refuse a feature that is switched on."""
        if self._config.get(name):
            raise ConfigError(f"model.{name}", self._config[name], why)


def _whole_number(name: str, value: Any, smallest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= LARGEST_SIZE:
        raise ConfigError(f"model.{name}", value, f"should be a whole number from {smallest} to {LARGEST_SIZE:,}")
    return value


def _divides(small_name: str, small: int, large_name: str, large: int) -> None:
    if large % small:
        raise ConfigError(f"model.{small_name}", small, f"should divide {large_name} = {large}")


def gpt2(fields: Fields) -> Architecture:
    """GPT2LMHeadModel."""
    fields.refuse("add_cross_attention", "cross attention is not supported yet")
    fields.refuse("reorder_and_upcast_attn", "upcast attention is not supported yet")
    hidden_size = fields.size("n_embd", "hidden_size", default=768)
    num_heads = fields.size("n_head", "num_attention_heads", default=12)
    _divides("n_head", num_heads, "n_embd", hidden_size)
    layer = Layer(
        wiring=Wiring.GPT2,
        activation=fields.activation("activation_function", default=Activation.GELU_NEW),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.optional_size("n_inner", default=None) or 4 * hidden_size,
        query_key_value_bias=True,
        output_bias=True,
        mlp_bias=True,
    )
    return Architecture(
        model_type="gpt2",
        vocab_size=fields.size("vocab_size", default=50257),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("n_positions", "max_position_embeddings", default=1024),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        layers=((layer, fields.size("n_layer", "num_hidden_layers", default=12)),),
        dropouts=Dropouts(
            embedding=fields.probability("embd_pdrop", default=0.1),
            attention=fields.probability("attn_pdrop", default=0.1),
            residual=fields.probability("resid_pdrop", default=0.1),
        ),
    )


def llama(fields: Fields) -> Architecture:
    """LlamaForCausalLM."""
    hidden_size = fields.size("hidden_size", default=4096)
    num_heads = fields.size("num_attention_heads", default=32)
    _divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    attention_bias = fields.flag("attention_bias", default=False)
    return _llama_like(
        fields,
        "llama",
        intermediate_size=11008,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=2048,
        vocab_size=32000,
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", default=False),
    )


def mistral(fields: Fields) -> Architecture:
    """MistralForCausalLM."""
    return _llama_like(
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
    return _llama_like(
        fields,
        "qwen2",
        intermediate_size=22016,
        num_key_value_heads=32,
        max_position_embeddings=32768,
        vocab_size=151936,
        query_key_value_bias=True,
        windows=lambda num_layers: _qwen_windows(fields, num_layers),
        always_makes_causal_mask=True,
    )


def qwen3(fields: Fields) -> Architecture:
    """Qwen3ForCausalLM: RMSNorm on each head's queries and keys, heads of their own size."""
    attention_bias = fields.flag("attention_bias", default=False)
    return _llama_like(
        fields,
        "qwen3",
        intermediate_size=22016,
        num_key_value_heads=32,
        head_dim=128,
        max_position_embeddings=32768,
        vocab_size=151936,
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        query_key_norm=True,
        windows=lambda num_layers: _qwen_windows(fields, num_layers),
        always_makes_causal_mask=True,
    )


def _qwen_windows(fields: Fields, num_layers: int) -> Windows:
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


def _llama_like(
    fields: Fields,
    model_type: str,
    *,
    intermediate_size: int,
    num_key_value_heads: int,
    max_position_embeddings: int,
    vocab_size: int,
    head_dim: int | None = None,
    windows: Callable[[int], Windows] = lambda num_layers: ((None, num_layers),),
    always_makes_causal_mask: bool = False,
    **layer_facts: bool,
) -> Architecture:
    """The Llama layer with a family's defaults."""
    hidden_size = fields.size("hidden_size", default=4096)
    num_heads = fields.size("num_attention_heads", default=32)
    if fields.is_null("num_key_value_heads"):
        num_key_value_heads = num_heads
    num_key_value_heads = fields.size("num_key_value_heads", default=num_key_value_heads)
    _divides("num_key_value_heads", num_key_value_heads, "num_attention_heads", num_heads)
    head_dim = fields.optional_size("head_dim", default=None) or head_dim
    if head_dim is None:
        _divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise ConfigError("model.head_dim", head_dim, "should be even: rotary positions turn pairs of its elements")
    num_layers = fields.size("num_hidden_layers", default=32)
    layer = Layer(
        wiring=Wiring.LLAMA,
        activation=fields.activation("hidden_act", default=Activation.SILU),
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        intermediate_size=fields.size("intermediate_size", default=intermediate_size),
        **layer_facts,
    )
    return Architecture(
        model_type=model_type,
        vocab_size=fields.size("vocab_size", default=vocab_size),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=max_position_embeddings),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        layers=tuple((replace(layer, sliding_window=window), count) for window, count in windows(num_layers)),
        dropouts=Dropouts(attention=fields.probability("attention_dropout", default=0.0)),
        always_makes_causal_mask=always_makes_causal_mask,
    )


FAMILIES: dict[str, Callable[[Fields], Architecture]] = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture a config.json describes.

    Raises ConfigError for a type that is not supported, a head other than the language-model head, a field that
    cannot be meant.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        near = get_close_matches(model_type, FAMILIES, n=1) if isinstance(model_type, str) else ()
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError("model.model_type", model_type, f"{hint}supported types: {', '.join(FAMILIES)}")
    heads = config.get("architectures")
    if heads is not None and not (isinstance(heads, list) and all(isinstance(head, str) for head in heads)):
        raise ConfigError("model.architectures", heads, "should be a list of class names")
    for head in heads or ():
        if not head.endswith(("ForCausalLM", "LMHeadModel")):
            raise ConfigError("model.architectures", head, "only the language-model head is supported yet")
    fields = Fields(config)
    fields.refuse("quantization_config", "quantized weights are not supported yet")
    return FAMILIES[model_type](fields)
