"""DeepSeek-V2 and V3 (R1, Kimi-K2): queries, keys and values of low-rank latents, many small experts."""

from dataclasses import replace

from calc.architecture import Architecture, Experts, Latent, Layer
from calc.errors import ConfigError
from calc.kinds import LatentAttention, LayerKind, Mixture, Pairs, Rotary, Router, SharedExpert

from .fields import Fields, even
from .llama import LLAMA_LAYER, LLAMA_MODEL, Defaults, llama_like
from .mixtures import ADDED_EXPERTS, dense_then_experts, sigmoid_mixture


def deepseek_v3(fields: Fields) -> Architecture:
    """DeepseekV3ForCausalLM."""
    pairs = Pairs.NEIGHBOURS if fields.flag("rope_interleave", default=True) else Pairs.HALVES
    rotary = Rotary(pairs=pairs, partial=True)
    return llama_like(
        fields,
        "deepseek_v3",
        Defaults(
            vocab_size=129280,
            hidden_size=7168,
            intermediate_size=18432,
            num_hidden_layers=61,
            num_attention_heads=128,
            max_position_embeddings=4096,
        ),
        layer=latent_layer(fields, rotary),
        model=replace(LLAMA_MODEL, rotary=rotary),
        pattern=sigmoid_mixture(
            fields,
            Experts(
                num_experts=256,
                num_experts_per_tok=8,
                num_groups=8,
                num_groups_per_tok=4,
                shared_intermediate_size=2048,
            ),
            normalises=True,
            first_dense=3,
            dense=lambda layer: latent(fields, layer),
        ),
        head_dim=query_head_dim(fields),
    )


def deepseek_v2(fields: Fields) -> Architecture:
    """DeepseekV2ForCausalLM: positions as complex numbers, experts chosen by softmax. Its configuration class leaves
    num_experts_per_tok open."""
    method = fields.value("topk_method", default="greedy")
    if method not in V2_ROUTERS:
        raise ConfigError("model.topk_method", method, f"should be one of {', '.join(V2_ROUTERS)}")
    if fields.value("num_experts_per_tok", default=None) is None:
        raise ConfigError("model.num_experts_per_tok", None, "should be given: the family has no default")
    router = V2_ROUTERS[method]
    groups, chosen = 1, 1
    if router is Router.SOFTMAX_GROUPS:
        groups, chosen = fields.size("n_group", default=1), fields.size("topk_group", default=1)
    rotary = Rotary(pairs=Pairs.COMPLEX, partial=True)
    mixture = Mixture(
        modules=("experts", "gate", *ADDED_EXPERTS),
        router=router,
        shared_expert=SharedExpert.ADDED,
        one_group=groups == 1,
    )
    width = fields.size("moe_intermediate_size", default=1407)
    experts = Experts(
        num_experts=64,
        num_experts_per_tok=0,
        num_groups=groups,
        num_groups_per_tok=chosen,
        shared_intermediate_size=width * fields.size("n_shared_experts", default=2),
    )
    mlp_bias = fields.flag("mlp_bias", default=False)
    return llama_like(
        fields,
        "deepseek_v2",
        Defaults(vocab_size=102400),
        layer=replace(latent_layer(fields, rotary), mlp_bias=mlp_bias),
        model=replace(LLAMA_MODEL, rotary=rotary),
        pattern=lambda layer, num_layers: dense_then_experts(
            fields, latent(fields, layer), num_layers, mixture, experts, width=width, first_dense=0
        ),
        head_dim=query_head_dim(fields),
    )


V2_ROUTERS = {"greedy": Router.SCALED_SOFTMAX, "group_limited_greedy": Router.SOFTMAX_GROUPS}


def latent_layer(fields: Fields, rotary: Rotary) -> LayerKind:
    """Llama's layer with latent attention."""
    bias = fields.flag("attention_bias", default=False)
    compressed = fields.optional_size("q_lora_rank", default=1536) is not None
    return replace(
        LLAMA_LAYER,
        rotary=rotary,
        query_key_value_bias=bias,
        output_bias=bias,
        query_key_by_head=True,
        latent=LatentAttention.ALL if compressed else LatentAttention.KEYS_AND_VALUES,
    )


def query_head_dim(fields: Fields) -> int:
    return fields.size("qk_nope_head_dim", default=128) + _turned_dim(fields)


def _turned_dim(fields: Fields) -> int:
    return even("qk_rope_head_dim", fields.size("qk_rope_head_dim", default=64))


def latent(fields: Fields, layer: Layer) -> Layer:
    """`layer` with the sizes of its latents."""
    heads = layer.num_attention_heads
    if layer.num_key_value_heads != heads:
        problem = f"should equal num_attention_heads = {heads}: each head has keys of its own"
        raise ConfigError("model.num_key_value_heads", layer.num_key_value_heads, problem)
    sizes = Latent(
        query_rank=fields.optional_size("q_lora_rank", default=1536) or 0,
        key_value_rank=fields.size("kv_lora_rank", default=512),
        value_head_dim=fields.size("v_head_dim", default=128),
    )
    return replace(layer, rotary_dim=_turned_dim(fields), latent=sizes)
