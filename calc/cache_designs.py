"""The key/value cache of a generation as published designs would keep it, beside the model's own.

The model's is read off the ledger. The others are formulas of their papers with the model's layers, heads and head
size, in the weights' type: what such an attention or decoder would hold, not models that are traced.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from . import closed_forms
from .architecture import Layer
from .errors import ConfigError
from .estimation import Estimate, estimate
from .scenario import Scenario, Task

LATENT_DIM, ROTARY_DIM = 512, 64
"""DeepSeek-V2's, where a model has no latents of its own."""
WINDOW = 1024
"""Tokens, where a model has no window of its own."""
LAYERS_PER_CACHE = 2
"""CLA2, the paper's choice."""
HEADS_PER_GROUP = 8

DESIGNS = {
    "mha": ("a key and a value for each query head (MHA)", "2·L·B·T·N·d·b"),
    "gqa": ("a key and a value for eight query heads (GQA)", "2·L·B·T·⌈N / 8⌉·d·b"),
    "mqa": ("one key and one value for all heads (MQA)", "2·L·B·T·d·b"),
    "mla": ("a latent and one turned key (MLA)", "L·B·T·(c + r)·b"),
    "window": ("a sliding window in each layer", "2·L·B·min(T, W)·K·d·b"),
    "cla": ("one cache for two layers (CLA)", "2·⌈L / 2⌉·B·T·K·d·b"),
    "yoco": ("one cache for the upper half, windows below (YOCO)", "2·B·(T + L/2·min(T, W))·K·d·b"),
}
"""Name and formula of each."""


CACHE_DESIGN_NOTES = (
    "The first line is the ledger's. The others are formulas of their papers with this model's layers, heads and size.",
    f"Without its own, a window is {WINDOW} tokens, a latent {LATENT_DIM} numbers and its turned key {ROTARY_DIM}.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheDesign:
    """One way to keep keys and values, at the end of a generation. Bytes are exact integers."""

    key: str
    name: str
    statement: str
    cache_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def cache_designs(scenario: Scenario) -> tuple[CacheDesign, ...]:
    """The model's own cache, then the designs'. Raises ConfigError for another task, and for an engine's pages."""
    if scenario.task is not Task.INFERENCE:
        raise ConfigError("task", scenario.task.value, "should be inference")
    if scenario.page_size is not None:
        raise ConfigError("page_size", scenario.page_size, "should be left out: designs are compared without pages")
    answer = estimate(scenario)
    own = answer.memory.kv_cache_bytes or 0
    asked = CacheDesign(key="own", name="the model as it is", statement="the ledger", cache_bytes=own)
    return (asked, *_designs(answer))


def _designs(answer: Estimate) -> list[CacheDesign]:
    workload, decoder = answer.step.workload, answer.architecture.decoder
    window = next((layer.sliding_window for layer, _ in decoder.layers if layer.sliding_window), WINDOW)
    sizes = {
        "num_layers": decoder.num_layers,
        "batch_size": workload.micro_batch_size,
        "num_tokens": (workload.target_length or workload.sequence_length) + workload.output_length,
        "element_bytes": int(answer.step.plan.numerics.weights.itemsize),
    }
    found = _cache_bytes(decoder.layers[0][0], min(window, sizes["num_tokens"]), sizes)
    return [
        CacheDesign(key=key, name=name, statement=statement, cache_bytes=found[key])
        for key, (name, statement) in DESIGNS.items()
    ]


def _cache_bytes(layer: Layer, seen: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Of each design; `seen`: the tokens of a window. Where keys and values have two head sizes, d is their mean."""
    num_heads, latent = layer.num_attention_heads, layer.latent
    head_dim = sum(layer.head_dims) // 2
    latents = (latent.key_value_rank, layer.rotary_dim) if latent else (LATENT_DIM, ROTARY_DIM)
    of_heads = {"num_key_value_heads": layer.num_key_value_heads, "head_dim": head_dim}
    heads = {"mha": num_heads, "gqa": -(-num_heads // HEADS_PER_GROUP), "mqa": 1}
    return {
        **{
            key: closed_forms.kv_cache_bytes(num_key_value_heads=count, head_dim=head_dim, **sizes)
            for key, count in heads.items()
        },
        "mla": closed_forms.latent_kv_cache_bytes(latent_dim=latents[0], rotary_dim=latents[1], **sizes),
        "window": closed_forms.kv_cache_bytes(**of_heads, **{**sizes, "num_tokens": seen}),
        "cla": closed_forms.cross_layer_kv_cache_bytes(layers_per_cache=LAYERS_PER_CACHE, **of_heads, **sizes),
        "yoco": closed_forms.yoco_kv_cache_bytes(window=seen, **of_heads, **sizes),
    }
