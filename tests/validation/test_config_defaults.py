"""What calc reads from a config.json against transformers' own configuration classes.

A file may leave out what equals the class's defaults; full and shortened files must be read alike, and as the class
itself means them.
"""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

from calc.architecture import Architecture
from calc.families import FAMILIES, NOT_MODELLED
from calc.hf_config import TEXT_PARTS, architecture
from tests.validation import families
from tests.validation.families import NOT_BUILT

COMMON_NAMES = ("vocab_size", "hidden_size", "max_position_embeddings")
LAYER_NAMES = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")


def assert_read_as_meant(config: PreTrainedConfig, written: dict[str, Any]) -> Architecture:
    """The file in full, as save_pretrained shortens it, and as a person wrote it are one architecture: the class's."""
    saved = json.loads(config.to_json_string(use_diff=True))
    read = architecture(config.to_dict())
    assert read == architecture(saved) == architecture(written)
    for name in COMMON_NAMES:
        if hasattr(config, name):  # Bloom's positions have no end
            assert getattr(read, name) == getattr(config, name), name
    decoder_layers = getattr(config, "num_decoder_layers", getattr(config, "decoder_layers", 0))
    assert read.num_layers == config.num_hidden_layers + decoder_layers
    assert read.tied_embeddings == getattr(config, "tie_word_embeddings", False)
    return read


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - NOT_BUILT))
def test_a_file_with_nothing_but_its_type(family: str) -> None:
    config = {"model_type": family, **families.FAMILIES[family].needs}
    assert_read_as_meant(AutoConfig.for_model(**config), config)


@st.composite
def llama_like_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Any subset of a family's fields, so that each is left out now and then."""
    family = draw(st.sampled_from(("llama", "mistral", "qwen2", "qwen3")))
    num_heads = draw(st.sampled_from((8, 16, 32)))
    fields = {
        "hidden_size": num_heads * draw(st.sampled_from((16, 64, 128))),
        "num_attention_heads": num_heads,
        "num_key_value_heads": draw(st.sampled_from((1, 2, 8))),
        "num_hidden_layers": draw(st.integers(1, 40)),
        "intermediate_size": draw(st.integers(1, 30_000)),
        "vocab_size": draw(st.integers(3, 200_000)),
        "max_position_embeddings": draw(st.integers(1, 200_000)),
        "hidden_act": draw(st.sampled_from(("silu", "gelu", "relu", "gelu_new"))),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_dropout": draw(st.sampled_from((0.0, 0.25))),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "head_dim": draw(st.sampled_from((32, 64, 128))),
        "use_sliding_window": draw(st.booleans()),
        "sliding_window": draw(st.sampled_from((512, 4096))),
        "max_window_layers": draw(st.integers(0, 40)),
    }
    names = sorted(fields.keys() & CONFIG_MAPPING[family]().to_dict().keys())
    kept = draw(st.sets(st.sampled_from(names)))
    if "num_attention_heads" in kept:
        kept.add("num_key_value_heads")  # Qwen's default of 32 would not divide them
    return {"model_type": family, **{name: fields[name] for name in names if name in kept}}


@given(fields=llama_like_fields())
def test_llama_like_configs(fields: dict[str, Any]) -> None:
    config = AutoConfig.for_model(**fields)
    read = assert_read_as_meant(config, fields)
    layer, _ = read.layers[0]
    for name in LAYER_NAMES:
        # Qwen2's class has no head_dim: its model divides (modeling_qwen2.py, Qwen2Attention).
        meant = getattr(config, name, config.hidden_size // config.num_attention_heads)
        assert getattr(layer, name) == meant, name
    assert layer.kind.activation == config.hidden_act
    assert read.dropouts.attention == config.attention_dropout
    if fields["model_type"] in {"llama", "qwen3"}:
        assert layer.kind.output_bias == config.attention_bias
    assert layer.kind.mlp_bias == getattr(config, "mlp_bias", False)
    windows = [layer.sliding_window for layer, count in read.layers for _ in range(count)]
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    assert windows == [window if kind == "sliding_attention" else None for kind in types]


@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "n_head": st.sampled_from((1, 2, 4, 12)),
            "n_embd": st.sampled_from((48, 96, 768)),
            "n_layer": st.integers(1, 40),
            "n_inner": st.none() | st.integers(1, 9000),
            "n_positions": st.integers(1, 9000),
            "vocab_size": st.integers(1, 90_000),
            "activation_function": st.sampled_from(("gelu_new", "gelu", "relu", "silu")),
            "attn_pdrop": st.sampled_from((0.0, 0.1, 0.5)),
            "embd_pdrop": st.sampled_from((0.0, 0.1, 0.5)),
            "resid_pdrop": st.sampled_from((0.0, 0.1, 0.5)),
            "tie_word_embeddings": st.booleans(),
        },
    )
)
def test_gpt2_configs(fields: dict[str, Any]) -> None:
    config = AutoConfig.for_model("gpt2", **fields)
    read = assert_read_as_meant(config, {"model_type": "gpt2", **fields})
    layer, _ = read.layers[0]
    assert layer.num_attention_heads == config.n_head
    assert layer.intermediate_size == (config.n_inner or 4 * config.n_embd)
    assert layer.kind.activation == config.activation_function
    dropouts = read.dropouts
    assert (dropouts.embedding, dropouts.attention, dropouts.residual) == (
        config.embd_pdrop,
        config.attn_pdrop,
        config.resid_pdrop,
    )
    assert architecture({"model_type": "gpt2", **as_common_names(fields)}) == read


def as_common_names(fields: dict[str, Any]) -> dict[str, Any]:
    """GPT-2's fields by the names that all families share."""
    common = {own: name for name, own in CONFIG_MAPPING["gpt2"].attribute_map.items()}
    return {common.get(name, name): value for name, value in fields.items()}


@pytest.mark.parametrize(("whole", "part"), TEXT_PARTS.items())
def test_the_text_part_of_a_model_with_images(whole: str, part: str) -> None:
    """Of a file that leaves its parts' fields out."""
    config = AutoConfig.for_model(whole)
    assert config.text_config.model_type == part
    read = architecture(json.loads(config.to_json_string(use_diff=True)) | {"text_config": {}})
    assert read == architecture(config.to_dict())
    assert replace(read, part_of=None) == architecture(config.text_config.to_dict())


def test_types_that_are_not_built_are_spelt_as_transformers_does() -> None:
    assert NOT_MODELLED.keys() <= set(CONFIG_MAPPING.keys())
