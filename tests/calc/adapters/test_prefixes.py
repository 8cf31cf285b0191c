"""Prefix tuning and P-tuning v2: keys and values before the text's in every layer."""

from typing import Any

import pytest

from calc import Adapter, ConfigError, Estimate, Scenario, estimate
from calc.flops import causal_flops
from calc.ledger import Kind
from calc.scenario import Precision
from tests.calc.adapters.toys import GPT2, LLAMA

TEXT, PREFIX, LAYERS = 33, 7, 3
KEYS_WIDTH = 2 * 16
"""Two key/value heads of 16."""


def answered(kind: str = "prefix-tuning", model: dict[str, Any] = LLAMA, **choices: Any) -> Estimate:
    fields = {name: choices.pop(name) for name in Adapter.model_fields if name in choices}
    adapter = Adapter(**{"kind": kind, "num_virtual_tokens": PREFIX, **fields})
    return estimate(Scenario(model=model, adapter=adapter, **{"sequence_length": TEXT, "precision": "bf16", **choices}))


ALL = LAYERS * 2 * KEYS_WIDTH


@pytest.mark.parametrize(
    ("choices", "trainable"),
    [
        ({}, PREFIX * ALL),
        ({"model": GPT2}, PREFIX * LAYERS * 2 * 64),
        ({"kind": "p-tuning-v2"}, PREFIX * ALL),
        ({"prefix_projection": True}, PREFIX * KEYS_WIDTH + (KEYS_WIDTH + 1) * KEYS_WIDTH + (KEYS_WIDTH + 1) * ALL),
        (
            {"prefix_projection": True, "encoder_hidden_size": 48},
            PREFIX * KEYS_WIDTH + (KEYS_WIDTH + 1) * 48 + (48 + 1) * ALL,
        ),
    ],
)
def test_trainable_parameters(choices: dict[str, Any], trainable: int) -> None:
    assert answered(**choices).parameters.trainable == trainable


def test_queries_see_the_prefix_and_nothing_else_is_longer() -> None:
    plain = estimate(Scenario(model=LLAMA, sequence_length=TEXT, precision=Precision.BF16))
    core = 2 * 2 * LAYERS * TEXT * PREFIX * 64  # two products, each head's queries with the prefix's keys
    assert answered().flops.forward == plain.flops.forward + core


def test_a_token_sees_the_whole_prefix_and_the_text_up_to_itself() -> None:
    answer = answered(micro_batch_size=2)
    seen = TEXT * PREFIX + TEXT * (TEXT + 1) // 2
    forward = 2 * 2 * 2 * 64 * seen  # two products, two sequences
    core = 3 * 2 * 2 * 2 * 64 * TEXT * (TEXT + PREFIX)
    assert causal_flops(core, TEXT, PREFIX) == 3 * forward  # and both products twice in backward
    flops = answer.flops
    unseen = LAYERS * (core - 3 * forward) // (2 * TEXT)
    assert flops.model_flops_per_token - flops.model_flops_per_token_causal == unseen


def test_the_cache_holds_keys_and_values_until_forward_ends_and_llamas_outputs_hold_it() -> None:
    """Repeated for the query heads, it is saved by no node itself."""
    held = LAYERS * 2 * 2560  # each 33 + 7 tokens of 32 elements in bf16
    mistral = LLAMA | {"model_type": "mistral", "sliding_window": None}
    ends = [answered(model=model).memory.phases[0].end_allocated_bytes for model in (LLAMA, mistral)]
    assert ends[0] - ends[1] == held


def test_gradients_of_all_layers_keys_wait_for_the_prefix() -> None:
    spans = answered(sequence_length=2, num_virtual_tokens=100).step.timeline.spans
    backward = [span for span in spans if span.stretch.label == "embedding"][-1]
    waiting = LAYERS * 2 * 6656  # of 102 tokens
    assert backward.start_bytes - backward.end_bytes >= waiting


def test_a_prefix_needs_a_mask_which_flash_does_not_take() -> None:
    assert answered(attention="auto").scenario.attention == "efficient"
    with pytest.raises(ConfigError, match="attention = 'flash': keys before the text's need a mask"):
        answered(attention="flash")


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"recompute": "full"}, "recompute = 'full': should be none or selective: prefix-tuning puts a cache"),
        ({"implementation": "megatron"}, "adapter.kind = 'prefix-tuning': should be another"),
        ({"sequence_length": 1}, "sequence_length = 1: should be at least 2"),
        ({"encoder_hidden_size": 8}, r"adapter\.encoder_hidden_size = 8: is not read without prefix_projection"),
        ({"rank": 4}, r"adapter\.rank = 4: is not read with adapter\.kind = prefix-tuning"),
        ({"kind": "p-tuning-v2", "prefix_projection": True}, r"adapter\.prefix_projection = True: is not read with"),
        ({"kind": "prompt-tuning", "prefix_projection": True}, r"adapter\.prefix_projection = True: is not read with"),
        ({"model": GPT2, "sequence_length": 60}, "sequence_length = 60: should be at most 57"),
    ],
)
def test_what_it_does_not_go_with(choices: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        answered(**choices)


def test_only_the_prefix_has_states_in_fp32() -> None:
    for entry in answered(prefix_projection=True).tensors:
        if entry.kind in {Kind.OPTIMIZER_STATES, Kind.GRADIENTS}:
            assert "prompt_encoder." in entry.name
            assert entry.dtype == "fp32"


def test_it_says_what_p_tuning_v2_is() -> None:
    assert any("prefix tuning without projection" in note for note in answered("p-tuning-v2").notes)
