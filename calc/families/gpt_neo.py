"""GPT-Neo: learned positions; every other layer sees a window, which its mask says and no tensor's size."""

from typing import Any

from calc.architecture import Architecture, Dropouts, Layer
from calc.errors import ConfigError
from calc.kinds import Activation, LayerKind, ModelKind, Norm, Wiring

from .fields import Fields, divides
from .gpt import GPT2_LAYER


def gpt_neo(fields: Fields) -> Architecture:
    """GPTNeoForCausalLM."""
    hidden_size = fields.size("hidden_size", default=2048)
    num_heads = fields.size("num_heads", "num_attention_heads", default=16)
    divides("num_heads", num_heads, "hidden_size", hidden_size)
    num_layers = fields.size("num_layers", "num_hidden_layers", default=24)
    _check_types(fields.value("attention_types", default=[[["global", "local"], 12]]), num_layers)
    layer = Layer(
        kind=LayerKind(
            wiring=Wiring.GPT_NEO,
            activation=fields.activation("activation_function", default=Activation.GELU_NEW),
            returns_weights=True,
            **dict(GPT2_LAYER, query_key_value_bias=False),
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.optional_size("intermediate_size", default=None) or 4 * hidden_size,
    )
    return Architecture(
        model_type="gpt_neo",
        kind=ModelKind(wiring=Wiring.GPT_NEO, norm=Norm.LAYER, learned_positions=True, writes_attention_out=True),
        vocab_size=fields.size("vocab_size", default=50257),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=2048),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        layers=((layer, num_layers),),
        dropouts=Dropouts(
            embedding=fields.probability("embed_dropout", default=0.0),
            attention=fields.probability("attention_dropout", default=0.0),
            residual=fields.probability("resid_dropout", default=0.0),
        ),
    )


def _check_types(types: Any, num_layers: int) -> None:
    """`[[[type, ...], times], ...]` must name a type for each layer (GPTNeoConfig.validate_architecture)."""
    try:
        named = [(len(kinds), times, {*kinds} <= {"global", "local"}) for kinds, times in types]
        fits = all(known for *_, known in named) and sum(count * times for count, times, _ in named) == num_layers
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ConfigError("model.attention_types", types, f"should name global or local for {num_layers} layers")
