"""Families with Llama's parts put together otherwise: other norms, other places for them, other ways of positions."""

from dataclasses import replace

from calc.architecture import Architecture, Dropouts, Layer
from calc.errors import ConfigError
from calc.kinds import (
    PARTIAL_ROTARY,
    PHI_ROTARY,
    Activation,
    EmbeddingScale,
    Mlp,
    Norm,
    Norms,
    PositionTables,
    QueryKeyNorm,
    ResidualDropout,
    Rotary,
)

from .fields import Fields
from .llama import (
    LLAMA_LAYER,
    LLAMA_MODEL,
    Defaults,
    Runs,
    llama_like,
    one_window,
    patterned,
    runs,
    sliding_but_every,
)

FP32_ROTARY = Rotary(tables=PositionTables.FP32, rounds=True)
COHERE_ROTARY = Rotary(inputs_in_fp32=True, rounds=True)
ERNIE_ROTARY = replace(FP32_ROTARY, repeats_tables=True, factors_in_fp32=True)
GLM_ROTARY = replace(PARTIAL_ROTARY, repeats_tables=True)
POST_NORMS = Norms(after_attention="post_attention_layernorm", after_mlp="post_feedforward_layernorm")


def phi3(fields: Fields) -> Architecture:
    """Phi3ForCausalLM: one projection for q, k and v, one for gate and up; positions may turn a part of each head."""
    rotary = replace(PARTIAL_ROTARY, joins_each=True)
    return llama_like(
        fields,
        "phi3",
        Defaults(vocab_size=32064, hidden_size=3072, intermediate_size=8192, max_position_embeddings=4096),
        layer=replace(
            LLAMA_LAYER,
            mlp=Mlp.GATED_FUSED,
            fused_query_key_value=True,
            registered_first=("self_attn.o_proj",),
            strided=frozenset("v"),
            rotary=rotary,
            query_key_by_head=True,
            residual_dropout=ResidualDropout.WHERE_ADDED,
        ),
        model=replace(LLAMA_MODEL, rotary=rotary),
        pattern=one_window(fields, default=None),
        dropouts=Dropouts(
            attention=fields.probability("attention_dropout", default=0.0),
            residual=fields.probability("resid_pdrop", default=0.0),
        ),
    )


def smollm3(fields: Fields) -> Architecture:
    """SmolLM3ForCausalLM: every fourth layer has no positions."""
    bias, mlp_bias = (fields.flag(name, default=False) for name in ("attention_bias", "mlp_bias"))
    return llama_like(
        fields,
        "smollm3",
        Defaults(
            vocab_size=128256,
            hidden_size=2048,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=4,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
        ),
        layer=replace(LLAMA_LAYER, query_key_value_bias=bias, output_bias=bias, mlp_bias=mlp_bias),
        model=replace(LLAMA_MODEL, always_makes_causal_mask=True),
        pattern=lambda layer, num_layers: _without_some_positions(fields, layer, num_layers),
    )


def _without_some_positions(fields: Fields, layer: Layer, num_layers: int) -> Runs:
    """The layers for which `no_rope_layers` says 0 have no positions, or else every n-th; those may slide."""
    every = fields.size("no_rope_layer_interval", default=4)
    turned = fields.flags("no_rope_layers", num_layers)
    if turned is None:
        turned = [index % every != every - 1 for index in range(patterned(num_layers))]
    window = fields.optional_size("sliding_window", default=None)
    if not fields.flag("use_sliding_window", default=False):
        window = None
    slides = fields.layer_types(num_layers) or [window is not None and not each for each in turned]
    if any(slides) and window is None:
        raise ConfigError("model.layer_types", "sliding_attention", "needs use_sliding_window and sliding_window")
    without = replace(layer, kind=replace(layer.kind, rotary=None))
    return runs(
        replace(layer if positions else without, sliding_window=window if sliding else None)
        for positions, sliding in zip(turned, slides, strict=True)
    )


def olmo(fields: Fields) -> Architecture:
    """OlmoForCausalLM: layer norms without weights."""
    fields.refuse("clip_qkv", "clamped queries and keys are not supported yet")
    bias = fields.flag("attention_bias", default=False)
    return llama_like(
        fields,
        "olmo",
        Defaults(vocab_size=50304),
        layer=replace(
            LLAMA_LAYER, norm=Norm.LAYER_OLMO, query_key_value_bias=bias, output_bias=bias, rotary=FP32_ROTARY
        ),
        model=replace(LLAMA_MODEL, norm=Norm.LAYER_OLMO, rotary=FP32_ROTARY),
    )


def olmo2(fields: Fields) -> Architecture:
    """Olmo2ForCausalLM: norms after attention and MLP, and of the whole projections of q and k."""
    bias = fields.flag("attention_bias", default=False)
    return llama_like(
        fields,
        "olmo2",
        Defaults(vocab_size=50304),
        layer=replace(
            LLAMA_LAYER,
            norm=Norm.RMS_OLMO,
            norms=POST_NORMS,
            query_key_value_bias=bias,
            output_bias=bias,
            query_key_norm=QueryKeyNorm.PROJECTION,
            rotary=FP32_ROTARY,
        ),
        model=replace(LLAMA_MODEL, norm=Norm.RMS_OLMO, rotary=FP32_ROTARY),
    )


def granite(fields: Fields) -> Architecture:
    """GraniteForCausalLM: embeddings, what is added to the residual stream, and logits are scaled."""
    bias, mlp_bias = (fields.flag(name, default=False) for name in ("attention_bias", "mlp_bias"))
    return llama_like(
        fields,
        "granite",
        Defaults(),
        layer=replace(
            LLAMA_LAYER, query_key_value_bias=bias, output_bias=bias, mlp_bias=mlp_bias, residual_scaled=True
        ),
        model=replace(LLAMA_MODEL, embedding_scale=EmbeddingScale.NUMBER, logits_scaled=True),
    )


COHERE = Defaults(
    vocab_size=256000,
    hidden_size=8192,
    intermediate_size=22528,
    num_hidden_layers=40,
    num_attention_heads=64,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
COHERE_LAYER = replace(
    LLAMA_LAYER,
    norm=Norm.LAYER_COHERE,
    norms=Norms(before_attention="input_layernorm"),
    parallel=True,
    rotary=COHERE_ROTARY,
)
COHERE_MODEL = replace(LLAMA_MODEL, norm=Norm.LAYER_COHERE, rotary=COHERE_ROTARY, logits_scaled=True)


def cohere(fields: Fields) -> Architecture:
    """CohereForCausalLM: attention and MLP side by side, layer norms in steps."""
    fields.refuse("use_qk_norm", "norms of queries and keys are not supported yet")
    bias = fields.flag("attention_bias", default=False)
    layer = replace(COHERE_LAYER, query_key_value_bias=bias, output_bias=bias)
    return llama_like(fields, "cohere", COHERE, layer=layer, model=COHERE_MODEL)


def cohere2(fields: Fields) -> Architecture:
    """Cohere2ForCausalLM: every fourth layer sees all tokens and has no positions."""
    bias = fields.flag("attention_bias", default=False)
    every = fields.size("sliding_window_pattern", default=4)
    return llama_like(
        fields,
        "cohere2",
        COHERE,
        layer=replace(COHERE_LAYER, query_key_value_bias=bias, output_bias=bias),
        model=replace(COHERE_MODEL, always_makes_causal_mask=True, always_makes_sliding_mask=True),
        pattern=lambda layer, num_layers: positions_where_sliding(sliding_but_every(fields, every, layer, num_layers)),
    )


def positions_where_sliding(layers: Runs) -> Runs:
    """Layers without a window get no positions."""
    return tuple(
        (layer if layer.sliding_window else replace(layer, kind=replace(layer.kind, rotary=None)), count)
        for layer, count in layers
    )


def starcoder2(fields: Fields) -> Architecture:
    """Starcoder2ForCausalLM: layer norms and an MLP without a gate."""
    bias = fields.flag("use_bias", default=True)
    return llama_like(
        fields,
        "starcoder2",
        Defaults(
            vocab_size=49152,
            hidden_size=3072,
            intermediate_size=12288,
            num_hidden_layers=30,
            num_attention_heads=24,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        ),
        layer=replace(
            LLAMA_LAYER,
            activation=Activation.GELU_PYTORCH_TANH,
            norm=Norm.LAYER,
            query_key_value_bias=bias,
            output_bias=bias,
            mlp_bias=bias,
            mlp=Mlp.PLAIN,
            residual_dropout=ResidualDropout.INSIDE,
        ),
        model=replace(LLAMA_MODEL, norm=Norm.LAYER),
        pattern=one_window(fields, default=None),
        dropouts=Dropouts(
            embedding=fields.probability("embedding_dropout", default=0.0),
            attention=fields.probability("attention_dropout", default=0.0),
            residual=fields.probability("residual_dropout", default=0.0),
        ),
    )


def stablelm(fields: Fields) -> Architecture:
    """StableLmForCausalLM: layer norms, positions on a quarter of each head, attention and MLP one after the other or
    side by side."""
    fields.refuse("qk_layernorm", "norms of queries and keys are not supported yet")
    parallel = fields.flag("use_parallel_residual", default=False)
    return llama_like(
        fields,
        "stablelm",
        Defaults(
            vocab_size=50304,
            hidden_size=2560,
            intermediate_size=6912,
            num_key_value_heads=32,
            max_position_embeddings=4096,
            partial_rotary_factor=0.25,
        ),
        layer=replace(
            LLAMA_LAYER,
            norm=Norm.LAYER,
            norms=Norms(before_attention="input_layernorm") if parallel else LLAMA_LAYER.norms,
            parallel=parallel,
            query_key_value_bias=fields.flag("use_qkv_bias", default=False),
            rotary=PHI_ROTARY,
            query_key_by_head=True,
            residual_dropout=ResidualDropout.MLP_ALONE,
            holds_results=True,
        ),
        model=replace(LLAMA_MODEL, norm=Norm.LAYER, rotary=PHI_ROTARY),
        dropouts=Dropouts(
            attention=fields.probability("attention_dropout", default=0.0),
            residual=fields.probability("hidden_dropout", default=0.0),
        ),
    )


GLM = Defaults(
    vocab_size=151552,
    intermediate_size=13696,
    num_hidden_layers=40,
    num_key_value_heads=2,
    head_dim=128,
    max_position_embeddings=131072,
    partial_rotary_factor=0.5,
)
GLM_LAYER = replace(LLAMA_LAYER, mlp=Mlp.GATED_FUSED, rotary=GLM_ROTARY, query_key_by_head=True)
GLM_MODEL = replace(LLAMA_MODEL, rotary=GLM_ROTARY)
GLM4_NORMS = Norms(
    before_attention="input_layernorm",
    after_attention="post_self_attn_layernorm",
    before_mlp="post_attention_layernorm",
    after_mlp="post_mlp_layernorm",
)


def glm(fields: Fields) -> Architecture:
    """GlmForCausalLM: positions on half of each head, one projection for gate and up."""
    bias = fields.flag("attention_bias", default=True)
    return llama_like(fields, "glm", GLM, layer=replace(GLM_LAYER, query_key_value_bias=bias), model=GLM_MODEL)


def glm4(fields: Fields) -> Architecture:
    """Glm4ForCausalLM: Glm with norms on both sides."""
    bias = fields.flag("attention_bias", default=True)
    layer = replace(GLM_LAYER, norms=GLM4_NORMS, query_key_value_bias=bias)
    return llama_like(fields, "glm4", GLM, layer=layer, model=GLM_MODEL)


def exaone4(fields: Fields) -> Architecture:
    """Exaone4ForCausalLM: norms after attention and MLP; where some layers slide, the others have no positions."""
    layer = replace(LLAMA_LAYER, norms=POST_NORMS, query_key_norm=QueryKeyNorm.HEAD, norms_after_projections=True)
    return llama_like(
        fields,
        "exaone4",
        Defaults(vocab_size=102400, intermediate_size=16384, num_key_value_heads=32),
        layer=layer,
        model=replace(LLAMA_MODEL, always_makes_causal_mask=True),
        pattern=lambda layer, num_layers: _exaone4_layers(fields, layer, num_layers),
    )


def _exaone4_layers(fields: Fields, layer: Layer, num_layers: int) -> Runs:
    if fields.is_null("sliding_window"):
        return ((layer, num_layers),)
    every = fields.size("sliding_window_pattern", default=4)
    return positions_where_sliding(sliding_but_every(fields, every, layer, num_layers))


def ernie4_5(fields: Fields) -> Architecture:
    """Ernie4_5ForCausalLM: positions of pairs, in fp32."""
    bias = fields.flag("use_bias", default=False)
    return llama_like(
        fields,
        "ernie4_5",
        Defaults(
            vocab_size=103424,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=18,
            num_attention_heads=16,
            num_key_value_heads=2,
            head_dim=128,
            max_position_embeddings=131072,
            tie_word_embeddings=True,
        ),
        layer=replace(LLAMA_LAYER, query_key_value_bias=bias, output_bias=bias, mlp_bias=bias, rotary=ERNIE_ROTARY),
        model=replace(LLAMA_MODEL, rotary=ERNIE_ROTARY),
        dropouts=Dropouts(),
    )
