"""ERNIE 4.5 with experts."""

from dataclasses import replace

from calc.architecture import Architecture, Dropouts, Experts, Layer
from calc.kinds import Mixture, Router, SharedExpert

from .fields import Fields
from .llama import LLAMA_LAYER, LLAMA_MODEL, Defaults, Runs, llama_like, patterned, runs
from .llama_kin import ERNIE_ROTARY
from .mixtures import ADDED_EXPERTS, with_experts


def ernie4_5_moe(fields: Fields) -> Architecture:
    """Ernie4_5_MoeForCausalLM: Ernie's layers, experts in some of them, a router that stays in fp32."""
    names = {"moe_num_experts": "num_experts", "moe_k": "num_experts_per_tok"}
    with fields.renamed(names) as common:
        return _ernie4_5_moe(common)


def _ernie4_5_moe(fields: Fields) -> Architecture:
    bias = fields.flag("use_bias", default=False)
    width = fields.size("moe_intermediate_size", default=1536)
    num_shared = fields.size("moe_num_shared_experts", default=2, smallest=0)
    mixture = Mixture(
        modules=("gate", "experts", *ADDED_EXPERTS),
        router=Router.CORRECTED_SOFTMAX,
        shared_expert=SharedExpert.BEFORE if num_shared else SharedExpert.NONE,
    )
    experts = Experts(num_experts=64, num_experts_per_tok=6, shared_intermediate_size=num_shared * width)

    def pattern(layer: Layer, num_layers: int) -> Runs:
        mixed = with_experts(fields, replace(layer, intermediate_size=width), mixture, experts)
        first = fields.size("moe_layer_start_index", default=1, smallest=0)
        last = fields.size("moe_layer_end_index", default=-1, smallest=-1)
        interval = fields.size("moe_layer_interval", default=1)
        last = num_layers - 1 if last < 0 else last
        has_experts = ((index + 1) % interval == 0 and first <= index <= last for index in range(patterned(num_layers)))
        return runs(mixed if each else layer for each in has_experts)

    return llama_like(
        fields,
        "ernie4_5_moe",
        Defaults(
            vocab_size=103424,
            hidden_size=2560,
            intermediate_size=12288,
            num_hidden_layers=28,
            num_attention_heads=20,
            num_key_value_heads=4,
            max_position_embeddings=131072,
            tie_word_embeddings=True,
        ),
        layer=replace(LLAMA_LAYER, query_key_value_bias=bias, output_bias=bias, mlp_bias=bias, rotary=ERNIE_ROTARY),
        model=replace(LLAMA_MODEL, rotary=ERNIE_ROTARY, head_bias=bias),
        pattern=pattern,
        dropouts=Dropouts(),
    )
