"""What an answer says of the attention kernels."""

from typing import Any

import pytest

from calc import Scenario, estimate
from calc.scenario import Task, WeightDType

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "vocab_size": 96}
MIXED = LLAMA | {
    "model_type": "qwen2",
    "num_key_value_heads": 4,
    "use_sliding_window": True,
    "sliding_window": 16,
    "max_window_layers": 3,
}


def notes(model: dict[str, Any], **choices: Any) -> str:
    return " ".join(estimate(Scenario(model=model, sequence_length=16, **choices)).notes)


@pytest.mark.parametrize(
    ("model", "choices", "said", "unsaid"),
    [
        (LLAMA, {"precision": "bf16"}, "flash: the accumulators", "efficient:"),
        (LLAMA, {"precision": "fp32"}, "efficient: the workspace", "flash:"),
        (LLAMA, {"attention": "eager"}, "Modelled", "flash:"),
        (MIXED, {}, "auto comes to flash in 3 layers, efficient in 1 layers", "cuDNN"),
        (LLAMA, {"gpu": "h100-sxm-80gb"}, "prefers cuDNN's attention on this GPU", "auto comes to"),
        (LLAMA, {"gpu": "a100-sxm-80gb"}, "flash:", "cuDNN's attention"),
        (LLAMA, {"gpu": "h100-sxm-80gb", "attention": "eager"}, "Modelled", "cuDNN's attention"),
    ],
)
def test_what_is_said_of_the_kernels(model: dict[str, Any], choices: dict[str, Any], said: str, unsaid: str) -> None:
    text = notes(model, **choices)
    assert said in text
    assert unsaid not in text


def test_a_generation_is_told_nothing_of_backward_and_nothing_twice() -> None:
    of_training = estimate(Scenario(model=LLAMA, sequence_length=16)).notes
    of_generation = estimate(Scenario(model=LLAMA, task=Task.INFERENCE, prompt_length=16)).notes
    assert any("peak_reserved_bytes" in note for note in of_training)
    assert not any(word in note for note in of_generation for word in ("backward", "the loss", "peak_reserved_bytes"))
    assert len(set(of_generation)) == len(of_generation)


def test_quantised_experts_are_not_said_to_run_as_a_grouped_product() -> None:
    asked = Scenario(model="gpt-oss-20b", task=Task.INFERENCE)
    as_it_is, quantised = (
        estimate(asked.model_copy(update={"weight_dtype": of})).notes for of in (None, WeightDType.MXFP4)
    )
    assert any("grouped_mm" in note for note in as_it_is)
    assert any("matmul_ogs" in note for note in quantised)
    assert not any("grouped_mm" in note for note in quantised)
