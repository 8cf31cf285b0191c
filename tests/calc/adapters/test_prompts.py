"""Prompt tuning and P-tuning: the model runs on more tokens than it is given."""

from typing import Any

import pytest

from calc import Adapter, ConfigError, Estimate, Scenario, estimate
from calc.ledger import Kind
from calc.scenario import Precision
from tests.calc.adapters.toys import GPT2

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 100,
    "vocab_size": 333,
}
TEXT, VIRTUAL = 33, 7


def answered(kind: str = "prompt-tuning", model: dict[str, Any] = LLAMA, **choices: Any) -> Estimate:
    fields = {name: choices.pop(name) for name in ("num_virtual_tokens", "encoder_hidden_size") if name in choices}
    adapter = Adapter(**{"kind": kind, "num_virtual_tokens": VIRTUAL, **fields})
    return estimate(Scenario(model=model, adapter=adapter, **{"sequence_length": TEXT, "precision": "bf16", **choices}))


@pytest.mark.parametrize(
    ("kind", "fields", "trainable"),
    [
        ("prompt-tuning", {}, VIRTUAL * 64),
        ("prompt-tuning", {"num_virtual_tokens": 20}, 20 * 64),
        ("p-tuning", {}, VIRTUAL * 64 + 3 * (64 * 64 + 64)),
        ("p-tuning", {"encoder_hidden_size": 48}, VIRTUAL * 64 + (64 + 1) * 48 + (48 + 1) * 48 + (48 + 1) * 64),
    ],
)
def test_trainable_parameters(kind: str, fields: dict[str, Any], trainable: int) -> None:
    parameters = answered(kind, **fields).parameters
    assert parameters.trainable == trainable
    assert parameters.frozen == estimate(Scenario(model=LLAMA, sequence_length=TEXT)).parameters.total


def test_the_model_runs_on_the_virtual_tokens_too() -> None:
    longer = estimate(Scenario(model=LLAMA, sequence_length=TEXT + VIRTUAL, precision=Precision.BF16))
    assert answered().flops.forward == longer.flops.forward
    encoder = 2 * VIRTUAL * (64 * 48 + 48 * 48 + 48 * 64)  # once, not for each sequence
    wide = answered("p-tuning", encoder_hidden_size=48, micro_batch_size=4)
    assert wide.flops.forward == answered(micro_batch_size=4).flops.forward + encoder


def test_every_input_gradient_is_computed_and_no_weights() -> None:
    flops = answered(attention="eager").flops
    length = TEXT + VIRTUAL
    core = 3 * 2 * 2 * 4 * length * length * 16
    assert flops.backward == flops.forward + core


def test_the_input_is_the_text_alone() -> None:
    answer = answered(micro_batch_size=2)
    assert answer.memory.persistent_bytes["inputs"] == 1024  # 2 × 33 × 8 bytes, rounded up
    assert answer.scenario.sequence_length == TEXT


def test_only_the_prompt_has_states() -> None:
    for entry in answered("p-tuning").tensors:
        if entry.kind in {Kind.OPTIMIZER_STATES, Kind.GRADIENTS}:
            assert "prompt_encoder." in entry.name
            assert entry.dtype == "fp32"  # whatever the base's type


def test_learned_positions_are_shared_with_the_virtual_tokens() -> None:
    assert answered(model=GPT2, sequence_length=None).scenario.sequence_length == 64 - VIRTUAL
    with pytest.raises(ConfigError, match=r"sequence_length = 60: should be at most 57: .* left by 7 virtual tokens"):
        answered(model=GPT2, sequence_length=60)


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        ("prompt-tuning", {"encoder_hidden_size": 8}, "encoder_hidden_size"),
        ("prompt-tuning", {"rank": 4}, "rank"),
        ("p-tuning", {"dtype": "base"}, "dtype"),
        ("p-tuning", {"modules_to_save": ("lm_head",)}, "modules_to_save"),
        ("lora", {"num_virtual_tokens": 4}, "num_virtual_tokens"),
    ],
)
def test_what_is_not_read_is_refused(kind: str, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"adapter\.{field} = .*: is not read with adapter\.kind = {kind}"):
        estimate(Scenario(model=LLAMA, adapter=Adapter(**{"kind": kind, **fields})))
