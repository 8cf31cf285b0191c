"""Padding against packing: the epoch's tokens and FLOPs, and the step that decides the peak."""

from pathlib import Path
from typing import Any

import pytest

from calc import Adapter, ConfigError, Scenario, estimate, length_report
from calc.lengths import Way, read_lengths
from calc.scenario import AdapterKind, Attention

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 100,
    "vocab_size": 97,
}
SCENARIO = Scenario(model=LLAMA, micro_batch_size=2, sequence_length=64, gradient_accumulation_steps=3)


def flops(scenario: Scenario, **fields: Any) -> int:
    changed = {"micro_batch_size": 1, "gradient_accumulation_steps": 1} | fields
    return estimate(scenario.model_copy(update=changed)).flops.total


def test_padding_by_hand() -> None:
    # Orders of 10, 20, 60, 60 in twos: with 60+60 (1 of 3 ways to pair them) 2·60 + 2·20, else 4·60.
    report = length_report(SCENARIO, [60, 10, 60, 20])
    by_way = {each.way: each for each in report.batchings}
    random, packed = by_way[Way.PADDED_RANDOM], by_way[Way.PACKED]
    assert report.num_tokens == 150
    assert random.computed_tokens == round((160 + 2 * 240) / 3)
    assert random.padding_tokens == random.computed_tokens - 150
    f20, f60 = (flops(SCENARIO, sequence_length=length) for length in (20, 60))
    assert random.flops == round((2 * f60 + 2 * f20 + 2 * 4 * f60) / 3)
    assert by_way[Way.PADDED_SORTED].computed_tokens == 160
    assert (packed.num_sequences, packed.computed_tokens, packed.padding_tokens) == (3, 192, 42)
    assert packed.flops == 3 * flops(SCENARIO, sequence_length=64)


def test_within_samples_attention_wastes_only_what_fills_the_bins() -> None:
    varlen = next(each for each in length_report(SCENARIO, {32: 4}).batchings if each.way is Way.PACKED_VARLEN)
    assert (varlen.num_sequences, varlen.wasted_flops) == (2, 0)
    by_way = {each.way: each for each in length_report(SCENARIO, {40: 2, 20: 1}).batchings}
    rooms = flops(SCENARIO, sequence_length=4) + flops(SCENARIO, sequence_length=24)
    assert by_way[Way.PACKED_VARLEN].wasted_flops == rooms
    eager = length_report(SCENARIO.model_copy(update={"attention": Attention.EAGER}), {40: 2})
    assert Way.PACKED_VARLEN not in {each.way for each in eager.batchings}


def test_equal_lengths_waste_nothing() -> None:
    for each in length_report(SCENARIO, {64: 7}).batchings:
        assert (each.padding_tokens, each.wasted_flops) == (0, 0)


def test_flops_of_rows_add_up_in_a_micro_batch() -> None:
    """What counting FLOPs row by row rests on."""
    assert flops(SCENARIO, micro_batch_size=5) == 5 * flops(SCENARIO)


def test_the_longest_sample_decides_the_peak() -> None:
    report = length_report(SCENARIO, [60, 10, 10, 20])
    for each in report.batchings:
        padded = each.way in {Way.PADDED_RANDOM, Way.PADDED_SORTED}
        at_longest = estimate(SCENARIO.model_copy(update={"sequence_length": 60 if padded else 64}))
        assert each.longest.memory.peak_allocated_bytes == at_longest.memory.peak_allocated_bytes
        assert each.mean.memory.peak_allocated_bytes <= each.longest.memory.peak_allocated_bytes
    random = report.batchings[0]
    assert random.mean.scenario.sequence_length == 39  # 2·60 + 2·20 two times of three, else 2·60 + 2·10: 38.3


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ([], "number of lengths = 0: should be at least micro_batch_size = 2"),
        ([5, 65], "lengths = 65: should be at most sequence_length = 64"),
        ([5, 0], "lengths = 0: should be whole numbers"),
        ([5, True], "lengths = True: should be whole numbers"),
        ([5, [5]], "should be whole numbers"),
        ({5: 1.5}, "lengths = {5: 1.5}: should be whole numbers"),
    ],
)
def test_wrong_lengths(lengths: Any, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        length_report(SCENARIO, lengths)
    assert words in str(refusal.value)


def test_virtual_tokens_come_once_a_row() -> None:
    prompted = SCENARIO.model_copy(update={"adapter": Adapter(kind=AdapterKind.PROMPT_TUNING)})
    with pytest.raises(ConfigError, match=r"adapter.kind = 'prompt-tuning': puts virtual tokens"):
        length_report(prompted, [5, 6])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[3, 4]", [3, 4]), (" 3\n4\n\n", [3, 4]), ('{"3": 2}', {3: 2}), ("12", [12])],
)
def test_files_of_lengths(text: str, expected: Any, tmp_path: Path) -> None:
    file = tmp_path / "lengths"
    file.write_text(text)
    assert read_lengths(str(file)) == expected


@pytest.mark.parametrize("text", ["[3, 4", "3, 4", '{"a": 1}', "3.5", "\x00", "["])
def test_files_that_hold_no_lengths(text: str, tmp_path: Path) -> None:
    file = tmp_path / "lengths"
    file.write_text(text)
    with pytest.raises(ConfigError, match="should be a JSON list"):
        read_lengths(str(file))
