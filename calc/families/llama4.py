"""The text part of Llama 4: some layers without positions, attention by chunks, all experts for every token."""

from dataclasses import replace

from calc.architecture import Architecture, Experts, Layer
from calc.errors import ConfigError
from calc.kinds import (
    LayerKind,
    Mixture,
    ModelKind,
    Norm,
    Pairs,
    QueryKeyNorm,
    Rotary,
    Router,
    SharedExpert,
    Softmax,
    Wiring,
)

from .fields import Fields
from .llama import LLAMA_LAYER, LLAMA_MODEL, Defaults, Runs, llama_like, patterned, runs
from .mixtures import with_experts

ROTARY = Rotary(pairs=Pairs.COMPLEX)
MIXTURE = Mixture(
    modules=("experts", "router", *(f"shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj"))),
    gate="router",
    router=Router.SIGMOID_OF_BEST,
    shared_expert=SharedExpert.ADDED,
    runs_all_experts=True,
)
CHUNKED, FULL = "chunked_attention", "full_attention"


def llama4_text(fields: Fields) -> Architecture:
    """Llama4ForCausalLM."""
    bias = fields.flag("attention_bias", default=False)
    kind = replace(
        LLAMA_LAYER,
        wiring=Wiring.LLAMA4,
        norm=Norm.RMS_LLAMA4,
        rotary=ROTARY,
        query_key_value_bias=bias,
        output_bias=bias,
        softmax=Softmax.PLAIN,
        chunked=True,
    )
    model: ModelKind = replace(
        LLAMA_MODEL,
        wiring=Wiring.LLAMA4,
        norm=Norm.RMS_LLAMA4,
        rotary=ROTARY,
        always_makes_causal_mask=True,
        always_makes_sliding_mask=True,
    )
    return llama_like(
        fields,
        "llama4_text",
        Defaults(
            vocab_size=202048,
            hidden_size=5120,
            intermediate_size=8192,
            num_hidden_layers=48,
            num_attention_heads=40,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=4096 * 32,
        ),
        layer=kind,
        model=model,
        pattern=lambda layer, num_layers: _layers(fields, layer, patterned(num_layers)),
    )


def _layers(fields: Fields, mixed: Layer, num_layers: int) -> Runs:
    """Which layers have positions, chunks and experts."""
    every = fields.size("no_rope_layer_interval", default=4)
    turned = fields.flags("no_rope_layers", num_layers) or [index % every != every - 1 for index in range(num_layers)]
    chunked = _chunked(fields, turned)
    chunk = fields.size("attention_chunk_size", default=8192)
    dense = replace(mixed, intermediate_size=fields.size("intermediate_size_mlp", default=16384))
    experts = Experts(num_experts=16, num_experts_per_tok=1, shared_intermediate_size=mixed.intermediate_size)
    mixed = with_experts(fields, mixed, MIXTURE, experts)
    sparse = _with_experts(fields, num_layers)
    normed, tempered = (fields.flag(name, default=True) for name in ("use_qk_norm", "attn_temperature_tuning"))

    def made(index: int) -> Layer:
        layer = mixed if index in sparse else dense
        kind: LayerKind = replace(layer.kind, rotary=None, queries_tempered=tempered)
        if turned[index]:
            kind = replace(layer.kind, query_key_norm=QueryKeyNorm.LENGTH if normed else QueryKeyNorm.NONE)
        return replace(layer, kind=kind, sliding_window=chunk if chunked[index] else None)

    return runs(map(made, range(num_layers)))


def _with_experts(fields: Fields, num_layers: int) -> frozenset[int]:
    """The layers that `moe_layers` lists, or else every n-th."""
    step = fields.size("interleave_moe_layer_step", default=1)
    if fields.value("moe_layers", default=None) is None:
        return frozenset(range(step - 1, num_layers, step))
    return fields.indices("moe_layers", num_layers)


def _chunked(fields: Fields, turned: list[bool]) -> list[bool]:
    """The layers that `layer_types` says attend within chunks, or else those with positions."""
    listed = fields.value("layer_types", default=None)
    if listed is None:
        listed = [CHUNKED if each else FULL for each in turned]
    if (
        not isinstance(listed, list)
        or len(listed) != len(turned)
        or any(each not in (CHUNKED, FULL) for each in listed)
    ):
        raise ConfigError("model.layer_types", listed, f"should list {len(turned)} of {CHUNKED}, {FULL}")
    if CHUNKED not in listed:
        raise ConfigError(
            "model.layer_types", FULL, "should let some layers attend by chunks: this model makes their mask"
        )
    return [each == CHUNKED for each in listed]
