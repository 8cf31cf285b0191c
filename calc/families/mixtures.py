"""Llama's layers with a mixture of experts in the MLP's place."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from calc.architecture import Architecture, Experts, Layer
from calc.errors import ConfigError
from calc.kinds import (
    PARTIAL_ROTARY,
    EmbeddingScale,
    Expert,
    Mixture,
    Norm,
    Pairs,
    QueryKeyNorm,
    Rotary,
    Router,
    SharedExpert,
)

from .fields import Fields
from .llama import (
    LLAMA_LAYER,
    LLAMA_MODEL,
    Defaults,
    Pattern,
    Runs,
    llama_like,
    one_window,
    patterned,
    runs,
    sliding_but_every,
)

QWEN2_MOE = Defaults(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=16,
    max_position_embeddings=32768,
)


def mixtral(fields: Fields) -> Architecture:
    """MixtralForCausalLM: every layer has experts; a token's weights of them stay fp32."""
    fields.refuse("router_jitter_noise", "noise before the router is not supported yet")
    mixture = Mixture(casts_logits=True, rounds_weights=False)
    window = one_window(fields, default=None)
    return llama_like(
        fields,
        "mixtral",
        Defaults(intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=4096 * 32),
        pattern=lambda layer, num_layers: window(
            with_experts(fields, layer, mixture, Experts(num_experts=8, num_experts_per_tok=2)), num_layers
        ),
    )


SHARED_EXPERT = tuple(f"shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj"))


def qwen2_moe(fields: Fields) -> Architecture:
    """Qwen2MoeForCausalLM: an expert for all tokens beside the others."""
    mixture = Mixture(
        modules=("gate", "experts", *SHARED_EXPERT, "shared_expert_gate"),
        shared_expert=SharedExpert.GATED,
        normalises_weights=fields.flag("norm_topk_prob", default=False),
    )
    experts = Experts(
        num_experts=60,
        num_experts_per_tok=4,
        shared_intermediate_size=fields.size("shared_expert_intermediate_size", default=5632),
    )
    width = fields.size("moe_intermediate_size", default=1408)

    def pattern(layer: Layer, num_layers: int) -> Runs:
        mixed = with_experts(fields, replace(layer, intermediate_size=width), mixture, experts)
        layers = zip(_sparse(fields, layer, mixed, num_layers), _windows(fields, num_layers), strict=True)
        return runs(replace(each, sliding_window=window) for each, window in layers)

    model = replace(
        LLAMA_MODEL,
        always_makes_causal_mask=True,
        always_makes_sliding_mask=True,
        kernels_get_it=not fields.flag("use_sliding_window", default=False),
    )
    return llama_like(
        fields,
        "qwen2_moe",
        QWEN2_MOE,
        layer=replace(LLAMA_LAYER, query_key_value_bias=fields.flag("qkv_bias", default=True)),
        model=model,
        pattern=pattern,
    )


def _windows(fields: Fields, num_layers: int) -> list[int | None]:
    """Of each layer: every second of the first `max_window_layers` slides, unless `layer_types` says which do."""
    if not fields.flag("use_sliding_window", default=False):
        return [None] * num_layers  # saved files then say sliding_window = 0
    window = fields.optional_size("sliding_window", default=4096)
    last = fields.size("max_window_layers", default=28, smallest=0)
    slides = fields.layer_types(num_layers) or [index % 2 == 0 and index < last for index in range(num_layers)]
    return [window if each else None for each in slides]


def qwen3_moe(fields: Fields) -> Architecture:
    """Qwen3MoeForCausalLM: Qwen3's attention, experts alone."""
    bias = fields.flag("attention_bias", default=False)
    mixture = Mixture(modules=("experts", "gate"), normalises_weights=fields.flag("norm_topk_prob", default=False))
    experts = Experts(num_experts=128, num_experts_per_tok=8)
    width = fields.size("moe_intermediate_size", default=768)
    window = fields.optional_size("sliding_window", default=4096)
    window = window if fields.flag("use_sliding_window", default=False) else None

    def pattern(layer: Layer, num_layers: int) -> Runs:
        layer = replace(layer, sliding_window=window)
        mixed = with_experts(fields, replace(layer, intermediate_size=width), mixture, experts)
        return runs(_sparse(fields, layer, mixed, num_layers))

    return llama_like(
        fields,
        "qwen3_moe",
        replace(QWEN2_MOE, intermediate_size=6144, num_attention_heads=32, num_key_value_heads=4),
        layer=replace(LLAMA_LAYER, query_key_value_bias=bias, output_bias=bias, query_key_norm=QueryKeyNorm.HEAD),
        pattern=pattern,
    )


GPT_OSS_EXPERTS = tuple(f"experts.{name}{suffix}" for name in ("gate_up_proj", "down_proj") for suffix in ("", "_bias"))


def gpt_oss(fields: Fields) -> Architecture:
    """GptOssForCausalLM: a learned score beside the tokens', every other layer slides, experts with biases."""
    bias = fields.flag("attention_bias", default=True)
    rotary = Rotary(pairs=Pairs.SPLIT_HALVES)
    mixture = Mixture(
        modules=("router", *GPT_OSS_EXPERTS), gate="router", router=Router.SOFTMAX_OF_BEST, expert=Expert.CLAMPED
    )
    experts = Experts(num_experts=128, num_experts_per_tok=4)
    return llama_like(
        fields,
        "gpt_oss",
        Defaults(
            vocab_size=201088,
            hidden_size=2880,
            intermediate_size=2880,
            num_hidden_layers=36,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=64,
            max_position_embeddings=131072,
        ),
        layer=replace(
            LLAMA_LAYER,
            norm=Norm.RMS_OLMO,
            query_key_value_bias=bias,
            output_bias=bias,
            rotary=rotary,
            query_key_by_head=True,
            sinks=True,
        ),
        model=replace(
            LLAMA_MODEL,
            norm=Norm.RMS_OLMO,
            rotary=rotary,
            always_makes_causal_mask=True,
            always_makes_sliding_mask=True,
        ),
        pattern=lambda layer, num_layers: sliding_but_every(
            fields, 2, with_experts(fields, layer, mixture, experts), num_layers, window=128
        ),
    )


def olmoe(fields: Fields) -> Architecture:
    """OlmoeForCausalLM: q and k normalised over all heads together."""
    fields.refuse("clip_qkv", "clamped queries and keys are not supported yet")
    bias = fields.flag("attention_bias", default=False)
    mixture = Mixture(normalises_weights=fields.flag("norm_topk_prob", default=False))
    experts = Experts(num_experts=64, num_experts_per_tok=8)
    return llama_like(
        fields,
        "olmoe",
        Defaults(
            vocab_size=50304,
            hidden_size=2048,
            intermediate_size=2048,
            num_hidden_layers=16,
            num_attention_heads=16,
            max_position_embeddings=4096,
        ),
        layer=replace(LLAMA_LAYER, query_key_value_bias=bias, output_bias=bias, query_key_norm=QueryKeyNorm.PROJECTION),
        pattern=lambda layer, num_layers: ((with_experts(fields, layer, mixture, experts), num_layers),),
    )


def granitemoe(fields: Fields) -> Architecture:
    """GraniteMoeForCausalLM: Granite's scales; a softmax over a token's best logits, in fp32. Its module
    block_sparse_moe is called mlp here."""
    bias = fields.flag("attention_bias", default=False)
    mixture = Mixture(modules=("router", "experts"), gate="router", router=Router.SOFTMAX_OF_BEST_IN_FP32)
    experts = Experts(num_experts=8, num_experts_per_tok=2)
    return llama_like(
        fields,
        "granitemoe",
        Defaults(),
        layer=replace(
            LLAMA_LAYER,
            query_key_value_bias=bias,
            output_bias=bias,
            residual_scaled=True,
            registered_first=(
                *(f"self_attn.{name}_proj" for name in "qkvo"),
                *("input_layernorm", "post_attention_layernorm"),
            ),
        ),
        model=replace(LLAMA_MODEL, embedding_scale=EmbeddingScale.NUMBER, logits_scaled=True),
        pattern=lambda layer, num_layers: ((with_experts(fields, layer, mixture, experts), num_layers),),
    )


def phimoe(fields: Fields) -> Architecture:
    """PhimoeForCausalLM: layer norms, and a router that draws two experts for each token."""
    fields.refuse("input_jitter_noise", "noise before the router is not supported yet")
    fields.only("num_experts_per_tok", 2)
    bias = fields.flag("attention_bias", default=False)
    mixture = Mixture(modules=("router", "experts"), gate="router", router=Router.SPARSE_MIXER)
    window = one_window(fields, default=None)
    experts = Experts(num_experts=16, num_experts_per_tok=2)
    return llama_like(
        fields,
        "phimoe",
        Defaults(
            vocab_size=32064,
            intermediate_size=6400,
            num_key_value_heads=8,
            max_position_embeddings=4096 * 32,
        ),
        layer=replace(LLAMA_LAYER, norm=Norm.LAYER, query_key_value_bias=bias, output_bias=bias),
        model=replace(LLAMA_MODEL, norm=Norm.LAYER, head_bias=fields.flag("lm_head_bias", default=False)),
        pattern=lambda layer, num_layers: window(with_experts(fields, layer, mixture, experts), num_layers),
    )


ADDED_EXPERTS = tuple(f"shared_experts.{name}" for name in ("gate_proj", "up_proj", "down_proj"))


def glm4_moe(fields: Fields) -> Architecture:
    """Glm4MoeForCausalLM: DeepSeek-V3's experts, positions on half of each head."""
    rotary = PARTIAL_ROTARY
    norm = QueryKeyNorm.HEAD if fields.flag("use_qk_norm", default=False) else QueryKeyNorm.NONE
    return llama_like(
        fields,
        "glm4_moe",
        Defaults(
            vocab_size=151552,
            hidden_size=4096,
            intermediate_size=10944,
            num_hidden_layers=46,
            num_attention_heads=96,
            num_key_value_heads=8,
            max_position_embeddings=131072,
            partial_rotary_factor=0.5,
        ),
        layer=replace(
            LLAMA_LAYER,
            query_key_value_bias=fields.flag("attention_bias", default=False),
            query_key_norm=norm,
            norms_after_projections=True,
            rotary=rotary,
            query_key_by_head=True,
        ),
        model=replace(LLAMA_MODEL, rotary=rotary),
        pattern=sigmoid_mixture(
            fields,
            Experts(num_experts=128, num_experts_per_tok=8, shared_intermediate_size=1408),
            normalises=True,
            first_dense=1,
            correction_in_fp32=True,
        ),
    )


def dots1(fields: Fields) -> Architecture:
    """Dots1ForCausalLM: DeepSeek-V3's experts behind Qwen3's attention. Its configuration class leaves the numbers of
    experts open."""
    bias = fields.flag("attention_bias", default=False)
    for name in ("n_routed_experts", "num_experts_per_tok", "n_shared_experts"):
        if fields.value(name, default=None) is None:
            raise ConfigError(f"model.{name}", None, "should be given: the family has no default")
    mixed = sigmoid_mixture(
        fields,
        Experts(num_experts=0, num_experts_per_tok=0, shared_intermediate_size=1408),
        normalises=False,
        first_dense=0,
    )
    return llama_like(
        fields,
        "dots1",
        Defaults(
            vocab_size=152064,
            hidden_size=4608,
            intermediate_size=10944,
            num_hidden_layers=62,
            num_key_value_heads=32,
        ),
        layer=replace(LLAMA_LAYER, query_key_value_bias=bias, output_bias=bias, query_key_norm=QueryKeyNorm.HEAD),
        pattern=lambda layer, num_layers: _last_ones_slide(fields, mixed(layer, num_layers), num_layers),
    )


def _last_ones_slide(fields: Fields, layers: Runs, num_layers: int) -> Runs:
    """The layers from `max_window_layers` on attend through the window, unless `layer_types` says which do."""
    window = fields.optional_size("sliding_window", default=4096)
    first = fields.size("max_window_layers", default=62, smallest=0)
    slides = fields.layer_types(num_layers) or [
        window is not None and index >= first for index in range(patterned(num_layers))
    ]
    if any(slides) and window is None:
        raise ConfigError("model.layer_types", "sliding_attention", "needs sliding_window")
    each = (layer for layer, count in layers for _ in range(count))
    return runs(
        replace(layer, sliding_window=window if sliding else None) for layer, sliding in zip(each, slides, strict=True)
    )


def sigmoid_mixture(
    fields: Fields,
    defaults: Experts,
    *,
    normalises: bool,
    first_dense: int,
    correction_in_fp32: bool = False,
    dense: Callable[[Layer], Layer] = lambda layer: layer,
) -> Pattern:
    """DeepSeek-V3's experts behind some layers without; `defaults` has the width of one shared expert, as wide as the
    others, and `dense` makes a layer without experts what else it is."""
    groups = fields.size("n_group", default=defaults.num_groups)
    width = fields.size("moe_intermediate_size", default=defaults.shared_intermediate_size)
    mixture = Mixture(
        modules=("experts", "gate", *ADDED_EXPERTS),
        router=Router.SIGMOID_GROUPS,
        shared_expert=SharedExpert.ADDED,
        one_group=groups == 1,
        normalises_weights=fields.flag("norm_topk_prob", default=normalises),
        correction_in_fp32=correction_in_fp32,
    )
    experts = replace(
        defaults,
        num_groups=groups,
        num_groups_per_tok=fields.size("topk_group", default=defaults.num_groups_per_tok),
        shared_intermediate_size=width * fields.size("n_shared_experts", default=1),
    )
    return lambda layer, num_layers: dense_then_experts(
        fields, dense(layer), num_layers, mixture, experts, width=width, first_dense=first_dense
    )


def dense_then_experts(
    fields: Fields, dense: Layer, num_layers: int, mixture: Mixture, experts: Experts, *, width: int, first_dense: int
) -> Runs:
    """Layers without experts, then layers with them; `width` is an expert's."""
    num_dense = min(fields.size("first_k_dense_replace", default=first_dense, smallest=0), num_layers)
    mixed = with_experts(fields, replace(dense, intermediate_size=width), mixture, experts)
    return tuple((each, count) for each, count in ((dense, num_dense), (mixed, num_layers - num_dense)) if count)


def _sparse(fields: Fields, dense: Layer, mixed: Layer, num_layers: int) -> Iterator[Layer]:
    """Every `decoder_sparse_step`-th layer is `mixed`, but for those that `mlp_only_layers` lists."""
    step = fields.size("decoder_sparse_step", default=1)
    only_mlp = fields.indices("mlp_only_layers", num_layers)
    for index in range(patterned(num_layers)):
        yield dense if index in only_mlp or (index + 1) % step else mixed


def with_experts(fields: Fields, layer: Layer, mixture: Mixture, defaults: Experts) -> Layer:
    """`layer` with experts."""
    count = fields.size("num_local_experts", "num_experts", "n_routed_experts", default=defaults.num_experts)
    chosen = fields.size("num_experts_per_tok", default=defaults.num_experts_per_tok)
    if chosen > count:
        raise ConfigError("model.num_experts_per_tok", chosen, f"should be at most {count}, the number of experts")
    _check_groups(defaults, count)
    records = fields.flag("output_router_logits", default=False)
    mixture = replace(mixture, one_expert_per_token=chosen == 1, records_logits=records)
    kind = replace(layer.kind, mlp=mixture)
    return replace(layer, kind=kind, experts=replace(defaults, num_experts=count, num_experts_per_tok=chosen))


def _check_groups(experts: Experts, num_experts: int) -> None:
    """Groups of equal size, of at least the two experts that stand for one, of which so many are chosen."""
    groups = experts.num_groups
    if groups > 1 and (num_experts % groups or num_experts < 2 * groups):
        problem = f"should divide the number of experts, {num_experts}, into groups of at least 2"
        raise ConfigError("model.n_group", groups, problem)
    if experts.num_groups_per_tok > groups:
        raise ConfigError("model.topk_group", experts.num_groups_per_tok, f"should be at most n_group = {groups}")
