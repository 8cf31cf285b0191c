"""ModernBERT: an encoder with rotary positions; two of three layers see a window."""

from dataclasses import replace

from calc.architecture import Architecture, Dropouts, Layer
from calc.errors import ConfigError
from calc.kinds import Activation, Head, LayerKind, ModelKind, Norm, Norms, PositionTables, Rotary, Wiring

from .fields import Fields, divides
from .llama import patterned, runs

ROTARY = Rotary(tables=PositionTables.BY_WINDOW, casts_twice=True, rounds=True)


def modernbert(fields: Fields) -> Architecture:
    """ModernBertForMaskedLM."""
    for name in ("sparse_prediction", "classifier_bias"):
        fields.only(name, False)
    norm = Norm.LAYER if fields.flag("norm_bias", default=False) else Norm.LAYER_WITHOUT_BIAS
    hidden_size = fields.size("hidden_size", default=768)
    num_heads = fields.size("num_attention_heads", default=12)
    divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    attention_bias = fields.flag("attention_bias", default=False)
    dropout = fields.probability("attention_dropout", default=0.0)
    layer = Layer(
        kind=LayerKind(
            wiring=Wiring.MODERNBERT,
            activation=fields.activation("hidden_activation", default=Activation.GELU),
            norm=norm,
            norms=Norms(before_attention="attn_norm", before_mlp="mlp_norm"),
            query_key_value_bias=attention_bias,
            output_bias=attention_bias,
            mlp_bias=fields.flag("mlp_bias", default=False),
            rotary=ROTARY,
            strided=frozenset("v"),
            bidirectional=True,
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        rotary_dim=hidden_size // num_heads,
        intermediate_size=fields.size("intermediate_size", default=1152),
    )
    return Architecture(
        model_type="modernbert",
        kind=ModelKind(
            wiring=Wiring.MODERNBERT,
            norm=norm,
            head=Head.MASKED_LM,
            head_activation=fields.activation("classifier_activation", default=Activation.GELU),
            head_bias=fields.flag("decoder_bias", default=True),
            rotary=ROTARY,
        ),
        vocab_size=fields.size("vocab_size", default=50368),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=8192),
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        layers=_layers(fields, layer),
        dropouts=Dropouts(
            embedding=fields.probability("embedding_dropout", default=0.0),
            attention=dropout,
            residual=dropout,
            mlp=fields.probability("mlp_dropout", default=0.0),
        ),
    )


def _layers(fields: Fields, layer: Layer) -> tuple[tuple[Layer, int], ...]:
    """Every n-th from the first on sees all tokens, the others half a window to each side; the first has no norm
    before its attention."""
    num_layers = fields.size("num_hidden_layers", default=22)
    every = fields.size("global_attn_every_n_layers", default=3)
    slides = fields.layer_types(num_layers) or [index % every != 0 for index in range(patterned(num_layers))]
    if not any(slides):
        raise ConfigError(
            "model.layer_types", "full_attention", "should let some layers slide: this model makes their mask"
        )
    sliding = replace(layer, sliding_window=fields.size("local_attention", default=128, smallest=2) // 2)
    first, *others = (sliding if each else layer for each in slides)
    first = replace(first, kind=replace(first.kind, norms=first.kind.norms._replace(before_attention=None)))
    return runs((first, *others))
