"""config.json -> Architecture: defaults, aliases and refusals.

tests/validation/test_config_defaults.py compares the defaults with transformers' own.
"""

import math
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from calc import Scenario, estimate
from calc.architecture import Architecture, Dropouts
from calc.errors import ConfigError
from calc.families import FAMILIES, NOT_MODELLED
from calc.hf_config import architecture
from calc.kinds import Activation, QueryKeyNorm, Wiring
from calc.scenario import LARGEST_SIZE

SIZES = {
    "gpt2": ("n_embd", "n_head", "n_layer", "n_inner", "n_positions", "vocab_size"),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3"),
        (
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "num_hidden_layers",
            "intermediate_size",
            "max_position_embeddings",
            "vocab_size",
            "head_dim",
        ),
    ),
}
NAMED_SIZES = [(family, name) for family, names in SIZES.items() for name in names]


def refused(**config: Any) -> ConfigError:
    with pytest.raises(ConfigError) as refusal:
        architecture(config)
    return refusal.value


@pytest.mark.parametrize(
    ("family", "vocab_size", "positions", "intermediate_size", "num_key_value_heads"),
    [
        ("gpt2", 50257, 1024, 4 * 768, 12),
        ("llama", 32000, 2048, 11008, 32),
        ("mistral", 32000, 131072, 14336, 8),
        ("qwen2", 151936, 32768, 22016, 32),
        ("qwen3", 151936, 32768, 22016, 32),
    ],
)
def test_what_a_file_leaves_out(
    family: str, vocab_size: int, positions: int, intermediate_size: int, num_key_value_heads: int
) -> None:
    read = architecture({"model_type": family})
    layer, _ = read.layers[0]
    assert (read.vocab_size, read.max_position_embeddings) == (vocab_size, positions)
    assert (layer.intermediate_size, layer.num_key_value_heads) == (intermediate_size, num_key_value_heads)


def test_gpt2_has_biases_dropouts_and_a_tied_head() -> None:
    read = architecture({"model_type": "gpt2"})
    layer, count = read.layers[0]
    assert (layer.kind.wiring, layer.kind.activation, count) == (Wiring.GPT2, Activation.GELU_NEW, 12)
    assert (layer.kind.query_key_value_bias, layer.kind.output_bias, layer.kind.mlp_bias) == (True, True, True)
    assert read.dropouts == Dropouts(embedding=0.1, attention=0.1, residual=0.1)
    assert read.tied_embeddings


def test_both_spellings_of_gpt2() -> None:
    own = {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128}
    common = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "max_position_embeddings": 128}
    assert (
        architecture({"model_type": "gpt2", **own})
        == architecture({"model_type": "gpt2", **common})
        == architecture({"model_type": "gpt2", **own, **common})
        != architecture({"model_type": "gpt2"})
    )


def test_spellings_that_contradict_each_other() -> None:
    refusal = refused(model_type="gpt2", n_embd=64, hidden_size=32)
    assert str(refusal) == "model.hidden_size = 32: contradicts n_embd = 64"


def test_null_means_the_default() -> None:
    config = {"model_type": "gpt2", "n_embd": None, "hidden_size": 96, "vocab_size": None, "n_inner": None}
    read = architecture(config)
    assert (read.hidden_size, read.vocab_size, read.layers[0][0].intermediate_size) == (96, 50257, 4 * 96)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_key_value_heads(family: str) -> None:
    def heads(**config: Any) -> int:
        return architecture({"model_type": family, **config}).layers[0][0].num_key_value_heads

    assert heads(num_attention_heads=8, num_key_value_heads=2) == 2
    assert heads(num_attention_heads=8, num_key_value_heads=None) == 8


def test_llama_without_key_value_heads_has_as_many_as_heads() -> None:
    assert architecture({"model_type": "llama", "num_attention_heads": 8}).layers[0][0].num_key_value_heads == 8


@pytest.mark.parametrize(
    ("family", "config", "head_dim"),
    [
        ("llama", {"hidden_size": 64, "num_attention_heads": 4}, 16),
        ("llama", {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 24}, 24),
        ("mistral", {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}, 16),
        ("mistral", {"hidden_size": 60, "num_attention_heads": 8, "head_dim": 24}, 24),
        ("qwen3", {"hidden_size": 60, "num_attention_heads": 32}, 128),
    ],
)
def test_head_dim(family: str, config: dict[str, int], head_dim: int) -> None:
    assert architecture({"model_type": family, **config}).layers[0][0].head_dim == head_dim


@pytest.mark.parametrize(
    ("family", "flags", "biases"),
    [
        ("llama", {}, (False, False, False)),
        ("llama", {"attention_bias": True}, (True, True, False)),
        ("llama", {"mlp_bias": True}, (False, False, True)),
        ("mistral", {"attention_bias": True}, (False, False, False)),  # MistralAttention has none to switch on
        ("qwen2", {}, (True, False, False)),
        ("qwen3", {}, (False, False, False)),
        ("qwen3", {"attention_bias": True}, (True, True, False)),
    ],
)
def test_biases(family: str, flags: dict[str, bool], biases: tuple[bool, bool, bool]) -> None:
    layer, _ = architecture({"model_type": family, **flags}).layers[0]
    assert (layer.kind.query_key_value_bias, layer.kind.output_bias, layer.kind.mlp_bias) == biases


def test_of_the_first_families_only_qwen3_has_norms_of_heads() -> None:
    kinds = {family: architecture({"model_type": family}).layers[0][0].kind for family in SIZES}
    assert [family for family, kind in kinds.items() if kind.query_key_norm is not QueryKeyNorm.NONE] == ["qwen3"]


def windows(**config: Any) -> list[tuple[int | None, int]]:
    read = architecture({"num_hidden_layers": 6, **config})
    return [(layer.sliding_window, count) for layer, count in read.layers]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mistral"}, [(4096, 6)]),
        ({"model_type": "mistral", "sliding_window": None}, [(None, 6)]),
        ({"model_type": "mistral", "sliding_window": 512}, [(512, 6)]),
        ({"model_type": "qwen2"}, [(None, 6)]),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2}, [(None, 2), (4096, 4)]),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}, [(4096, 6)]),
        ({"model_type": "qwen2", "use_sliding_window": True}, [(None, 6)]),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": None}, [(None, 6)]),
    ],
)
def test_sliding_windows(config: dict[str, Any], expected: list[tuple[int | None, int]]) -> None:
    assert windows(**config) == expected


def test_listed_layer_types_decide() -> None:
    types = ["sliding_attention", "full_attention", "full_attention", *["sliding_attention"] * 3]
    listed = {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 1, "layer_types": types}
    assert windows(**listed) == [(4096, 1), (None, 2), (4096, 3)]


@pytest.mark.parametrize(
    "types",
    [["full_attention"] * 5, ["full_attention"] * 7, ["chunked_attention"] * 6, [None] * 6, [[]] * 6, "full_attention"],
)
def test_layer_types_that_cannot_be_meant(types: Any) -> None:
    refusal = refused(model_type="qwen2", num_hidden_layers=6, layer_types=types)
    assert refusal.field == "model.layer_types"
    assert refusal.expected == "should list 6 of full_attention, sliding_attention"


def test_a_sliding_layer_needs_a_window() -> None:
    refusal = refused(model_type="qwen2", num_hidden_layers=1, layer_types=["sliding_attention"])
    assert refusal.field == "model.layer_types"


@pytest.mark.parametrize(("family", "name"), NAMED_SIZES)
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "64", math.nan, math.inf, LARGEST_SIZE + 1, [], {}])
def test_a_size_is_a_positive_whole_number(family: str, name: str, value: Any) -> None:
    refusal = refused(model_type=family, **{name: value})
    assert (refusal.field, str(refusal.value)) == (f"model.{name}", str(value))
    assert "whole number" in refusal.expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2", "n_head": 7}, "model.n_head = 7: should divide n_embd = 768"),
        (
            {"model_type": "llama", "num_attention_heads": 7},
            "heads = 7: should divide hidden_size = 4096",
        ),
        ({"model_type": "qwen2", "num_attention_heads": 7, "num_key_value_heads": 7}, "should divide hidden_size"),
        (
            {"model_type": "llama", "num_key_value_heads": 5},
            "heads = 5: should divide num_attention_heads",
        ),
        ({"model_type": "llama", "num_key_value_heads": 64}, "should divide num_attention_heads = 32"),
        ({"model_type": "mistral", "head_dim": 33}, "model.head_dim = 33: should be even"),
        ({"model_type": "qwen2", "hidden_size": 96, "num_attention_heads": 32}, "model.head_dim = 3: should be even"),
    ],
)
def test_sizes_that_do_not_go_together(config: dict[str, Any], message: str) -> None:
    assert message in str(refused(**config))


@pytest.mark.parametrize("value", [1, 1.5, -0.1, True, "0.1", math.nan, [], {}])
@pytest.mark.parametrize(("family", "name"), [("gpt2", "attn_pdrop"), ("llama", "attention_dropout")])
def test_dropouts_are_probabilities(family: str, name: str, value: Any) -> None:
    assert refused(model_type=family, **{name: value}).field == f"model.{name}"


@pytest.mark.parametrize("value", ["mish", None, [], {}, 5])
def test_activations_that_are_not_known(value: Any) -> None:
    refusal = refused(model_type="llama", hidden_act=value)
    assert refusal.expected == "should be one of gelu_new, gelu, gelu_pytorch_tanh, relu, silu"


def test_swish_is_silu() -> None:
    assert architecture({"model_type": "gpt2", "activation_function": "swish"}).layers[0][0].kind.activation == "silu"


@pytest.mark.parametrize(
    ("name", "value"),
    [("tie_word_embeddings", 1), ("attention_bias", "true"), ("mlp_bias", 0), ("tie_word_embeddings", None)],
)
def test_flags_are_true_or_false(name: str, value: Any) -> None:
    assert refused(model_type="llama", **{name: value}).expected == "should be true or false"


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config.quant_method"),
        ({"quantization_config": {}}, "quantization_config.quant_method"),
        ({"quantization_config": "gptq"}, "quantization_config"),
        ({"architectures": ["GPT2ForTokenClassification"]}, "architectures"),
        ({"architectures": "GPT2LMHeadModel"}, "architectures"),
        ({"architectures": [None]}, "architectures"),
    ],
)
def test_what_comes_later_is_refused(config: dict[str, Any], field: str) -> None:
    assert refused(model_type="gpt2", **config).field == f"model.{field}"


@pytest.mark.parametrize(
    ("quantisation", "method", "advice"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq", "to train them unquantised"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq", "to train them unquantised"),
        ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, "fp8", "to train them unquantised"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": []}, "mxfp4", "to train them unquantised"),
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized"},
            "compressed-tensors",
            "to train them unquantised",
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", "to train them unquantised"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", "adapter.kind = qlora"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes", "adapter.kind = qlora"),
    ],
)
def test_a_quantised_checkpoint_is_refused_by_its_method(
    quantisation: dict[str, Any], method: str, advice: str
) -> None:
    refusal = refused(model_type="llama", quantization_config=quantisation)
    assert refusal.value == method
    assert advice in refusal.expected


def test_a_checkpoint_that_says_it_is_not_quantised_is_none() -> None:
    assert architecture({"model_type": "llama", "quantization_config": None}) == architecture({"model_type": "llama"})


@pytest.mark.parametrize("heads", [None, [], ["GPT2LMHeadModel"], ["GPT2LMHeadModel", "OtherForCausalLM"]])
def test_the_language_model_head(heads: Any) -> None:
    assert architecture({"model_type": "gpt2", "architectures": heads}) == architecture({"model_type": "gpt2"})


@pytest.mark.parametrize(
    ("model_type", "hint"),
    [
        ("lama", "did you mean llama"),
        ("qwen", "did you mean qwen3 or qwen2"),
        ("xlnet", ""),
        (None, ""),
        (["gpt2"], ""),
    ],
)
def test_unknown_model_types(model_type: Any, hint: str) -> None:
    refusal = refused(model_type=model_type)
    assert refusal.field == "model.model_type"
    assert refusal.expected.startswith(hint or "README.md lists")
    assert f"the {len(FAMILIES)} supported types, docs/families.md" in refusal.expected


def test_a_config_without_a_type() -> None:
    assert refused(hidden_size=64).field == "model.model_type"


def test_nothing_is_guessed_from_fields_of_other_families() -> None:
    assert architecture({"model_type": "llama", "n_embd": 64, "n_layer": 1}) == architecture({"model_type": "llama"})


def test_a_million_layers_take_no_time_and_no_memory() -> None:
    def read() -> Architecture:
        return architecture({"model_type": "llama", "num_hidden_layers": 10**6})

    tracemalloc.start()
    started = time.perf_counter()
    assert read().num_layers == 10**6
    seconds = time.perf_counter() - started
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 0.1
    assert peak_bytes < 100_000


GEMMA3 = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {"model_type": "gemma3_text", "hidden_size": 640, "num_hidden_layers": 7},
    "vision_config": {"hidden_size": 1152},
}


def test_of_a_model_with_images_the_text_part_is_read_and_said_so():
    text = architecture({"model_type": "gemma3_text", "hidden_size": 640, "num_hidden_layers": 7})
    assert architecture(GEMMA3) == replace(text, part_of="gemma3")
    assert architecture({**GEMMA3, "text_config": {"hidden_size": 640, "num_hidden_layers": 7}}) == architecture(GEMMA3)
    answer = estimate(Scenario(model=GEMMA3, sequence_length=8))
    assert any("text part alone, gemma3_text" in note for note in answer.notes)
    assert architecture({"model_type": "llama4", "text_config": {}}).model_type == "llama4_text"


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"model_type": "mistral3"}, "model.model_type", "give the object text_config"),
        ({"architectures": ["Gemma3ForSequenceClassification"]}, "model.architectures", "not supported yet for gemma3"),
        ({"text_config": 3}, "model.text_config", "should be an object"),
        ({"text_config": {"hidden_size": "x"}}, "model.hidden_size", "whole number"),
        ({"quantization_config": {"quant_method": "gptq"}}, "model.quantization_config", "quantised weights"),
    ],
)
def test_parts_that_are_refused(changes: dict[str, Any], field: str, expected: str):
    with pytest.raises(ConfigError, match=expected) as raised:
        architecture(GEMMA3 | changes)
    assert raised.value.field.startswith(field)


@pytest.mark.parametrize(("model_type", "missing"), NOT_MODELLED.items())
def test_a_known_type_that_is_not_built_says_what_it_lacks(model_type: str, missing: str):
    with pytest.raises(ConfigError, match=f"needs {missing}, not supported yet") as raised:
        architecture({"model_type": model_type})
    assert "did you mean" not in raised.value.expected
    assert model_type not in FAMILIES
