"""Whisper: what it owns, how long its sequences are, what it is refused with."""

from typing import Any

import pytest

from calc import ConfigError, Estimate, Scenario, estimate

WHISPER = {"model_type": "whisper"}
HIDDEN, FRAMES, TOKENS, MEL_BINS = 384, 3000, 1500, 80


def whisper(config: dict[str, Any] | None = None, **fields: Any) -> Estimate:
    return estimate(Scenario(model=WHISPER | (config or {}), **fields))


def test_the_encoders_positions_are_not_trained() -> None:
    parameters = whisper().parameters
    assert parameters.frozen == TOKENS * HIDDEN


def test_the_table_of_tokens_is_the_head_and_counted_once() -> None:
    more = whisper({"vocab_size": 51866}).parameters.total - whisper({"vocab_size": 51865}).parameters.total
    assert more == HIDDEN


def test_its_encoder_hears_as_much_as_the_config_says() -> None:
    asked = whisper().scenario
    assert (asked.sequence_length, asked.target_length) == (TOKENS, 448)
    assert whisper(sequence_length=TOKENS, target_length=100).scenario.target_length == 100
    with pytest.raises(ConfigError, match=r"^sequence_length = 448: should be 1500 or left out: .* 3000 frames"):
        whisper(sequence_length=448)
    with pytest.raises(ConfigError, match=r"^target_length = 449: should be at most 448"):
        whisper(target_length=449)


def test_its_input_is_a_spectrogram_in_the_weights_type() -> None:
    labels = 2 * 100 * 8 + 448  # rounded up
    for precision, itemsize in (("fp32", 4), ("bf16", 2), ("bf16-autocast", 4)):
        inputs = whisper(micro_batch_size=2, target_length=100, precision=precision).memory.persistent_bytes["inputs"]
        assert inputs == 2 * MEL_BINS * FRAMES * itemsize + labels


def test_the_second_convolution_makes_a_gradient_of_what_it_reads_and_the_first_none() -> None:
    """Both are taken out: with a mel bin more the first costs 2·3·384 FLOPs a frame more, and as many in backward."""
    more, fewer = (whisper({"num_mel_bins": bins}).flops for bins in (MEL_BINS + 1, MEL_BINS))
    assert more.forward - fewer.forward == more.backward - fewer.backward == 2 * 3 * HIDDEN * FRAMES
    products = [row.products[0] for row in _convolutions()]
    assert [product.m[-1] for product in products] == ["2S", "S"]
    backward = [sum(len(gradient.products) for gradient in row.gradients) for row in _convolutions()]
    assert backward == [2, 2]  # of which the first's input, an input of the step, wants none


def _convolutions() -> list[Any]:
    step = whisper().step.step
    return [row for row in step.parts[0].section.rows if row.name == "convolution"]


def test_all_linear_leaves_the_head_out() -> None:
    lora = whisper(adapter={"target_modules": ["all-linear"]}).parameters
    head = whisper(adapter={"target_modules": ["all-linear", "proj_out"]}).parameters
    assert lora == head


@pytest.mark.parametrize(
    ("config", "fields", "named"),
    [
        ({}, {"task": "inference"}, "task"),
        ({}, {"task": "evaluation"}, "task"),
        ({}, {"precision": "fp16"}, "precision"),
        ({}, {"optimizer": "adafactor"}, "optimizer"),
        ({}, {"num_labels": 2}, "num_labels"),
        ({}, {"recompute": "selective"}, "recompute"),
        ({"apply_spec_augment": True}, {}, "model.apply_spec_augment"),
        ({"encoder_layerdrop": 0.1}, {}, "model.encoder_layerdrop"),
        ({"tie_word_embeddings": False}, {}, "model.tie_word_embeddings"),
        ({"architectures": ["WhisperForAudioClassification"]}, {}, "model.architectures"),
        ({"architectures": ["WhisperForCausalLM"]}, {}, "model.architectures"),
    ],
)
def test_what_is_not_built_is_refused(config: dict[str, Any], fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named} = "):
        whisper(config, **fields)
