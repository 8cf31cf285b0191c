"""What quantised checkpoints take: against published files, and each layout against numbers worked out by hand."""

from typing import Any

import pytest

from calc import ConfigError, Scenario, checkpoint_weights, estimate, load_model, weight_bytes
from calc.catalogue import CatalogueModel, Checkpoint, checkpoints, find_model, model_named, models
from calc.dtype import DType
from calc.quantisation import checkpoints_of, read_quantisation, scenario_weights, weight_total_bytes
from calc.scenario import WeightDType

LLAMA = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "torch_dtype": "bfloat16"}
NUM_MODULES = 7
"""Linear modules of one of its layers."""
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
BNB = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def compressed(layout: str, ignore: tuple[str, ...] = ("lm_head",), **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"a": group}, "ignore": [*ignore]}


def stored(quantisation: dict[str, Any] | None, config: dict[str, Any] = LLAMA) -> dict[str, tuple[Any, ...]]:
    """Each tensor's sizes, type and count."""
    rows = checkpoint_weights(config | {"quantization_config": quantisation}).tensors
    return {row.name: (*(size for _, size in row.shape), row.dtype, row.count) for row in rows}


def of_down_proj(quantisation: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The tensors of down_proj, [256, 512] in both layers."""
    start = "model.layers.*.mlp.down_proj."
    return {name.removeprefix(start): row for name, row in stored(quantisation).items() if name.startswith(start)}


@pytest.mark.parametrize("checkpoint", checkpoints(), ids=lambda each: each.hub_id)
def test_the_published_bytes(checkpoint: Checkpoint) -> None:
    answer = checkpoint_weights(checkpoint.hub_id)
    assert answer.total_bytes == checkpoint.published_bytes.total
    assert answer.published_bytes is checkpoint.published_bytes
    assert checkpoint.published_bytes.source.startswith("https://huggingface.co/")
    assert find_model(checkpoint.model) is not None


def test_an_awq_index_of_llama_3_70b() -> None:
    """total_size of nine files with 80 layers and a head of its own, quoted in the test of a Go client, which does not
    say whose."""
    config = {**model_named("llama-3.1-70b").config, "quantization_config": AWQ}
    assert checkpoint_weights(config).total_bytes == 39_767_785_472


GPT_OSS = {
    "model_type": "gpt_oss",
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_experts_per_tok": 4,
    "attention_bias": True,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    },
}


@pytest.mark.parametrize(("num_layers", "num_experts", "published"), [(24, 32, 13761264768), (36, 128, 65248815744)])
def test_the_published_bytes_of_gpt_oss(num_layers: int, num_experts: int, published: int) -> None:
    """huggingface.co/openai/gpt-oss-20b: total_size of model.safetensors.index.json; gpt-oss-120b: its tensors' bytes;
    both as public repositories quoted them on 2026-11-22."""
    config = GPT_OSS | {"num_hidden_layers": num_layers, "num_local_experts": num_experts}
    assert checkpoint_weights(config).total_bytes == published


def test_a_model_of_the_catalogue_in_another_type() -> None:
    in_mxfp4, in_fp32 = (
        scenario_weights(Scenario(model="gpt-oss-20b", weight_dtype=each))
        for each in (WeightDType.MXFP4, WeightDType.FP32)
    )
    assert (in_mxfp4.total_bytes, in_mxfp4.dtype) == (13761264768, "bf16")
    assert in_fp32.total_bytes == 2 * in_mxfp4.unquantised_bytes


@pytest.mark.parametrize(
    ("model", "dtype"), [("Qwen/Qwen3-32B-AWQ", WeightDType.NF4), ("llama-3.1-8b", WeightDType.Q4_0)]
)
def test_types_that_weights_are_not_listed_in(model: str, dtype: WeightDType) -> None:
    with pytest.raises(ConfigError, match="weight_dtype"):
        scenario_weights(Scenario(model=model, weight_dtype=dtype))


COUNTED = [each for each in models() if each.published_parameters and not each.config.get("is_encoder_decoder")]


@pytest.mark.parametrize("model", COUNTED, ids=lambda each: each.name)
def test_unquantised_weights_are_the_parameters(model: CatalogueModel) -> None:
    rows = weight_bytes(load_model(model.name), dtype=DType.FP32)
    assert weight_total_bytes(rows) == 4 * estimate(Scenario(model=model.name)).parameters.total


def test_gptq_of_auto_gptq_gives_each_module_a_bias() -> None:
    assert of_down_proj({"quant_method": "gptq", "bits": 4, "group_size": 128}) == {
        "qweight": (64, 256, "int32", 2),
        "qzeros": (4, 32, "int32", 2),
        "scales": (4, 256, "fp16", 2),
        "g_idx": (512, "int32", 2),
        "bias": (256, "fp16", 2),
    }


def test_gptq_of_gptqmodel_does_not() -> None:
    written_by = {"meta": {"quantizer": ["gptqmodel:2.2.0"]}}
    assert "bias" not in of_down_proj({"quant_method": "gptq", "bits": 4, "group_size": 128} | written_by)


def test_a_bias_of_the_module_itself_is_there_once() -> None:
    config = LLAMA | {"model_type": "qwen2"}
    names = stored({"quant_method": "gptq", "bits": 4, "group_size": 128}, config)
    assert names["model.layers.*.self_attn.q_proj.bias"] == (4, 64, "bf16", 2)
    assert names["model.layers.*.self_attn.o_proj.bias"] == (256, "fp16", 2)


@pytest.mark.parametrize(("bits", "words"), [(2, 32), (3, 48), (8, 128)])
def test_gptq_packs_any_bits_and_one_group_is_all_columns(bits: int, words: int) -> None:
    tensors = of_down_proj({"quant_method": "gptq", "bits": bits, "group_size": -1})
    assert tensors["qweight"] == (words, 256, "int32", 2)
    assert tensors["scales"] == (1, 256, "fp16", 2)


def test_groups_of_128_where_nothing_is_said() -> None:
    assert of_down_proj({"quant_method": "gptq"})["scales"] == (4, 256, "fp16", 2)


def test_gptq_of_some_modules() -> None:
    some = {"quant_method": "gptq", "bits": 4, "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj"]]}
    assert {name.split(".")[-2] for name in stored(some) if name.endswith("qweight")} == {"q_proj", "up_proj"}


def test_gptq_of_the_head_too() -> None:
    assert stored({"quant_method": "gptq", "bits": 4, "lm_head": True})["lm_head.g_idx"] == (256, "int32", 1)


def test_awq() -> None:
    assert of_down_proj(AWQ) == {
        "qweight": (512, 32, "int32", 2),
        "qzeros": (4, 32, "int32", 2),
        "scales": (4, 256, "fp16", 2),
    }


def test_bitsandbytes_in_4_bits() -> None:
    num_scales = 256 * 512 // 64
    assert of_down_proj(BNB) == {
        "weight": (256, 512, "4-bit", 2),
        "weight code": (16, "fp32", 2),
        "weight scales": (num_scales, "fp32", 2),
    }
    double = of_down_proj(BNB | {"bnb_4bit_use_double_quant": True})
    assert double["weight scales"] == (num_scales, "uint8", 2)
    assert double["weight scales of scales"] == (num_scales // 256, "fp32", 2)


def test_four_bits_are_half_a_byte() -> None:
    rows = checkpoint_weights(LLAMA | {"quantization_config": BNB}).tensors
    assert next(row.bytes for row in rows if row.name.endswith("down_proj.weight")) == 256 * 512 // 2


def test_bitsandbytes_in_8_bits() -> None:
    assert of_down_proj({"quant_method": "bitsandbytes", "load_in_8bit": True}) == {
        "weight": (256, 512, "int8", 2),
        "SCB": (256, "fp32", 2),
        "weight_format": ("uint8", 2),
    }


def test_fp8_in_blocks() -> None:
    assert of_down_proj(FP8) == {"weight": (256, 512, "fp8", 2), "weight_scale_inv": (2, 4, "fp32", 2)}
    assert of_down_proj(FP8 | {"weight_block_size": [100, 512]})["weight_scale_inv"] == (3, 1, "fp32", 2)


def test_fp8_as_a_whole_with_static_activations() -> None:
    whole = of_down_proj({"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"})
    assert (whole["weight_scale_inv"], whole["activation_scale"]) == (("fp32", 2), ("fp32", 2))


def test_fbgemm() -> None:
    expected = {"weight": (256, 512, "fp8", 2), "weight_scale": (256, 1, "fp32", 2)}
    assert of_down_proj({"quant_method": "fbgemm_fp8"}) == expected


def test_compressed_tensors_packed() -> None:
    scheme = compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=64)
    expected = {
        "weight_packed": (256, 64, "int32", 2),
        "weight_shape": (2, "int64", 2),
        "weight_scale": (256, 8, "bf16", 2),
    }
    assert of_down_proj(scheme) == expected
    scheme["config_groups"]["a"]["weights"] |= {"symmetric": False, "actorder": "group"}
    more = {"weight_zero_point": (32, 8, "int32", 2), "weight_g_idx": (512, "int32", 2)}
    assert of_down_proj(scheme) == expected | more


def test_compressed_tensors_as_elements() -> None:
    channel = compressed("int-quantized", num_bits=8, type="int", strategy="channel")
    assert of_down_proj(channel) == {"weight": (256, 512, "int8", 2), "weight_scale": (256, 1, "bf16", 2)}
    tensor = compressed("float-quantized", num_bits=8, type="float", strategy="tensor")
    tensor["config_groups"]["a"]["input_activations"] = {"num_bits": 8, "dynamic": False}
    whole = {"weight": (256, 512, "fp8", 2), "weight_scale": (1, "bf16", 2), "input_scale": (1, "bf16", 2)}
    assert of_down_proj(tensor) == whole
    block = compressed("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[128, 128])
    assert of_down_proj(block)["weight_scale"] == (2, 4, "bf16", 2)


def test_mxfp4_is_of_experts_alone() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_local_experts": 4, "num_key_value_heads": 4}
    tensors = stored({"quant_method": "mxfp4"}, LLAMA | sizes | {"model_type": "mixtral"})
    experts = "model.layers.*.mlp.experts"
    assert tensors[f"{experts}.gate_up_proj.blocks"] == (4, 2, 96, 2, 16, "uint8", 2)
    assert tensors[f"{experts}.gate_up_proj.scales"] == (4, 2, 96, 2, "uint8", 2)
    assert tensors[f"{experts}.down_proj.blocks"] == (4, 64, 3, 16, "uint8", 2)
    assert tensors["model.layers.*.self_attn.q_proj.weight"][-2:] == ("bf16", 2)


def test_each_expert_has_scales_of_its_own_and_the_router_none() -> None:
    config = LLAMA | {"model_type": "mixtral", "num_local_experts": 4}
    tensors = stored(FP8 | {"modules_to_not_convert": ["lm_head"]}, config)
    assert tensors["model.layers.*.mlp.experts.down_proj.weight_scale_inv"] == (4, 2, 4, "fp32", 2)
    assert tensors["model.layers.*.mlp.experts.gate_up_proj.weight_scale_inv"] == (4, 2, 4, 2, "fp32", 2)
    assert tensors["model.layers.*.mlp.gate.weight"] == (4, 256, "bf16", 2)


@pytest.mark.parametrize(
    ("quantisation", "whole"),
    [
        (FP8 | {"modules_to_not_convert": ["model.layers.1", "lm_head"]}, NUM_MODULES),
        (FP8 | {"modules_to_not_convert": ["model.layers.0.mlp", "lm_head"]}, 3),
        (FP8 | {"modules_to_not_convert": ["o_proj", "lm_head"]}, 2),
        (FP8 | {"modules_to_not_convert": ["model.layers.*.mlp", "lm_head"]}, 6),
        (FP8 | {"modules_to_not_convert": ["model.layers.1.mlp.up", "lm_head"]}, 0),
        (AWQ | {"modules_to_not_convert": ["down_proj"]}, 2),
        (BNB | {"llm_int8_skip_modules": ["lm_head", "q_proj"]}, 2),
        (compressed("int-quantized", ("lm_head", "re:.*self_attn.*"), num_bits=8, strategy="channel"), 8),
        (compressed("int-quantized", ("lm_head", "model.layers.0.mlp.up_proj"), num_bits=8, strategy="channel"), 1),
    ],
)
def test_what_is_left_as_it_is(quantisation: dict[str, Any], whole: int) -> None:
    """Of 14 modules in two layers, `whole` keep a weight in bf16; the head always does."""
    rows = checkpoint_weights(LLAMA | {"quantization_config": quantisation}).tensors
    assert sum(row.count for row in rows if row.name.endswith("_proj.weight") and row.dtype == "bf16") == whole
    assert stored(quantisation)["lm_head.weight"] == (100, 256, "bf16", 1)


def test_the_head_is_quantised_where_a_list_does_not_name_it() -> None:
    assert stored(FP8)["lm_head.weight"][-2] == "bf16"
    assert stored(FP8 | {"modules_to_not_convert": []})["lm_head.weight"][-2] == "fp8"


def test_gpt2s_modules_have_their_full_names() -> None:
    config = {"model_type": "gpt2", "n_layer": 2}
    left = FP8 | {"modules_to_not_convert": ["transformer.h.0", "lm_head"]}
    assert stored(left, config)["transformer.h.*.mlp.c_fc.weight_scale_inv"][-1] == 1


@pytest.mark.parametrize("slow", ["(.+)+x", "(.*)*x", "(a|.){9}x", "a?a?a?a?a?x", ".*.*.*.*.*x", "a)*(?:b"])
def test_patterns_that_take_ages_are_refused(slow: str) -> None:
    """A server reads them from anybody."""
    ignoring = compressed("int-quantized", (f"re:{slow}",), strategy="channel")
    for config in (FP8 | {"modules_to_not_convert": [slow]}, ignoring):
        with pytest.raises(ConfigError, match="at most 4 repeats, none of a group") as refusal:
            checkpoint_weights(LLAMA | {"quantization_config": config})
        assert refusal.value.value == slow


@pytest.mark.parametrize(
    ("quantisation", "field"),
    [
        ({"quant_method": "aqlm"}, "quant_method"),
        ({}, "load_in_4bit"),
        ({"quant_method": "gptq", "bits": 5}, "bits"),
        ({"quant_method": "gptq", "dynamic": {"+:x": {}}}, "dynamic"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "checkpoint_format"),
        ({"quant_method": "gptq", "group_size": 0}, "group_size"),
        ({"quant_method": "gptq", "modules_in_block_to_quantize": ["x"]}, "modules_in_block_to_quantize"),
        (AWQ | {"version": "gemv"}, "version"),
        (AWQ | {"modules_to_not_convert": "gate"}, "modules_to_not_convert"),
        (FP8 | {"weight_block_size": [128]}, "weight_block_size"),
        (FP8 | {"activation_scheme": "mixed"}, "activation_scheme"),
        (FP8 | {"modules_to_not_convert": ["("]}, "modules_to_not_convert"),
        (compressed("marlin-24", num_bits=4), "format"),
        (compressed("int-quantized", num_bits=4, strategy="channel"), "num_bits"),
        (compressed("int-quantized", num_bits=8, strategy="token"), "strategy"),
        (compressed("int-quantized", num_bits=8, strategy="channel", type="bool"), "type"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {}}, "config_groups"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_field(quantisation: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_quantisation({"quantization_config": quantisation})
    assert refusal.value.field == f"model.quantization_config.{field}"


def test_no_quantisation_is_none() -> None:
    assert read_quantisation({"quantization_config": None}) is None
    assert checkpoint_weights(LLAMA).quant_method is None


def test_a_type_that_weights_do_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.dtype"):
        checkpoint_weights(LLAMA | {"dtype": "int8"})


def test_a_checkpoint_is_not_trained_and_the_message_says_what_is() -> None:
    with pytest.raises(ConfigError, match=r"qwen3-32b: train that one, or with adapter\.kind = qlora"):
        estimate(Scenario(model="qwen/qwen3-32b-fp8"))


def test_a_models_checkpoints() -> None:
    [awq, fp8] = checkpoints_of("Qwen/Qwen3-32B")
    assert (awq["quant_method"], fp8["quant_method"]) == ("awq", "fp8")
    assert awq["total_bytes"] == awq["published_bytes"]["total"]
    assert checkpoints_of("gpt2") == []


def test_llama_4s_experts_are_quantised_in_ways_that_are_not_told() -> None:
    quantised = {**model_named("llama-4-scout").config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(ConfigError, match="is not supported yet for llama4_text: files keep its experts"):
        checkpoint_weights(quantised)
    whole = checkpoint_weights("llama-4-scout")
    assert whole.total_bytes == 2 * estimate(Scenario(model="llama-4-scout", sequence_length=8)).parameters.total
