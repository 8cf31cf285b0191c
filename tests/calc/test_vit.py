"""Image classifiers: what they own, what they are given, what they are refused with."""

from typing import Any

import pytest

from calc import ConfigError, Estimate, Scenario, estimate
from calc.quantisation.checkpoints import checkpoint_weights

VIT = {"model_type": "vit"}
PIXELS = 3 * 224 * 224
PATCH = 3 * 16 * 16


def vit(config: dict[str, Any] | None = None, **fields: Any) -> Estimate:
    return estimate(Scenario(model=VIT | (config or {}), **fields))


def test_weights_in_fewer_bits_are_refused() -> None:
    int8 = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    with pytest.raises(ConfigError, match=r"^model.model_type = 'vit': is not supported yet with quantised weights"):
        checkpoint_weights(VIT | int8)


def test_its_sequence_is_an_images_patches_and_a_class_token() -> None:
    assert vit().scenario.sequence_length == vit(sequence_length=197).scenario.sequence_length == 14 * 14 + 1
    # What is left over at the edges is in no patch.
    assert vit({"image_size": [50, 40], "patch_size": [16, 8]}).scenario.sequence_length == 3 * 5 + 1
    with pytest.raises(ConfigError, match=r"^sequence_length = 128: should be 197 or left out: .* 196 patches"):
        vit(sequence_length=128)


def test_the_convolution_has_flops_as_a_product_has_but_no_gradient_of_its_images() -> None:
    """2·196·768·(3·16·16) an image, once in forward and once for the weight's gradient in backward."""
    of_patches = 2 * 196 * PATCH * 768
    layers, head = 12 * (2 * 197 * 12 * 768**2 + 4 * 197**2 * 768), 2 * 768 * 2
    flops = vit(attention="eager").flops
    assert flops.forward == of_patches + layers + head
    assert flops.backward == of_patches + 2 * layers + 2 * head


def test_images_are_an_fp32_input_that_the_convolution_keeps_as_it_reads_them() -> None:
    inputs = vit(micro_batch_size=4).memory.persistent_bytes["inputs"]
    assert inputs == 4 * PIXELS * 4 + 512  # and labels
    tensors = {tensor.name: tensor for tensor in vit(micro_batch_size=4, precision="bf16").tensors}
    assert tensors["pixel_values in bf16"].bytes == 4 * PIXELS * 2
    assert "pixel_values in bf16" not in {tensor.name for tensor in vit(precision="fp32").tensors}


def test_one_images_class_token_keeps_the_gradient_of_all_tokens() -> None:
    """Its own gradient is a view of theirs, which is not summed over images."""
    for batch, bytes_kept in ((1, 197 * 768 * 4), (2, 768 * 4)):
        gradients = vit(micro_batch_size=batch, zero_grad_set_to_none=False, precision="fp32").tensors
        assert next(each for each in gradients if each.name == "∂embeddings.cls_token").bytes == bytes_kept


def test_labels_are_the_configs_or_the_scenarios() -> None:
    assert vit().architecture.num_labels == 2
    assert vit({"id2label": {"0": "a", "1": "b", "2": "c"}}).architecture.num_labels == 3
    assert vit({"num_labels": 10}, num_labels=7).parameters.by_component["head"] == 7 * (768 + 1)


def test_an_adapter_trains_the_head_where_it_is_named() -> None:
    """PEFT has no task for images."""
    lora = 12 * 2 * 8 * (768 + 768)
    adapter: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
    assert vit(adapter=adapter).parameters.trainable == lora
    assert vit(adapter=adapter | {"modules_to_save": ["classifier"]}).parameters.trainable == lora + 2 * 769


@pytest.mark.parametrize(
    ("config", "fields", "named"),
    [
        ({}, {"task": "inference"}, "task"),
        ({}, {"optimizer": "adafactor"}, "optimizer"),
        ({}, {"adapter": {"target_modules": ["all-linear"]}}, "adapter.target_modules"),
        ({}, {"adapter": {"kind": "prompt-tuning"}}, "adapter.kind"),
        ({}, {"loss": "chunked-cross-entropy"}, "loss"),
        ({}, {"target_length": 8}, "target_length"),
        ({"image_size": 8}, {}, "model.patch_size"),
        ({"image_size": [224]}, {}, "model.image_size"),
        ({"num_labels": 0}, {}, "model.num_labels"),
        ({"head_dim": 32}, {}, "model.head_dim"),
        ({"architectures": ["ViTModel"]}, {}, "model.architectures"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, {}, "model.architectures"),
    ],
)
def test_what_is_not_built_is_refused(config: dict[str, Any], fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named} = "):
        vit(config, **fields)
