"""Samples of different lengths: what padding wastes and packing spares, and which micro-batch decides the peak."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import cache
from itertools import repeat
from math import ceil
from numbers import Integral
from typing import Any

from .assembly import step_memory
from .batching import Histogram, first_fit_decreasing, random_epoch, sorted_epoch
from .errors import ConfigError
from .estimation import Estimate, estimate
from .json_file import read_text
from .kinds import Head
from .plan import resolve
from .scenario import Attention, Scenario, num_prompt_tokens
from .totals import step_flops

LENGTH_NOTES = (
    (
        "One epoch of the given samples, exactly; padded-random is the mean over all orders. Wasted are the FLOPs "
        "beyond those of each sample alone."
    ),
    "transformers' group_by_length sorts within groups of at most 50 batches: between padded-random and padded-sorted.",
    (
        "Padded micro-batches come without an attention mask, as in the modelled step: with labels of -100 causal "
        "attention needs none. A mask would rule out flash in PyTorch's scaled_dot_product_attention."
    ),
    (
        "packed: bins of sequence_length, filled first-fit decreasing. Attention runs over the whole of each, so "
        "samples see each other. The block-diagonal mask that transformers 5.23.0 makes where position_ids restart "
        "(find_packed_sequence_indices) prevents that, spares no FLOPs, rules out flash, and is not in the peak."
    ),
    (
        "packed-varlen: flash_attn_varlen_func of the package flash-attn computes within samples only. Its peak is "
        "given as that of packed, without its offsets of 4 bytes a sample; assumed, not traced."
    ),
)


class Way(StrEnum):
    """How samples become micro-batches."""

    PADDED_RANDOM = "padded-random"
    PADDED_SORTED = "padded-sorted"
    PACKED = "packed"
    PACKED_VARLEN = "packed-varlen"
    """Where the kernel is flash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """One way, over one epoch. Means over orders are rounded to whole numbers."""

    way: Way
    num_sequences: int
    """Rows of all micro-batches: samples, or bins."""
    computed_tokens: int
    padding_tokens: int
    flops: int
    wasted_flops: int
    """Beyond those of each sample alone."""
    longest: Estimate
    """The step with the longest rows: the peak of the epoch."""
    mean: Estimate
    """The step with rows of the mean length, rounded up."""

    def to_dict(self) -> dict[str, Any]:
        counts = ("way", "num_sequences", "computed_tokens", "padding_tokens", "flops", "wasted_flops")
        steps = {"longest": _step(self.longest), "mean": _step(self.mean)}
        return {name: getattr(self, name) for name in counts} | steps


def _step(answer: Estimate) -> dict[str, Any]:
    return {
        "sequence_length": answer.scenario.sequence_length,
        "peak_allocated_bytes": answer.memory.peak_allocated_bytes,
        "fits": answer.memory.fits,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthReport:
    """The ways side by side."""

    scenario: Scenario
    """The question, with what it left open filled in; its sequence_length is what samples are packed into."""
    num_samples: int
    num_tokens: int
    shortest: int
    longest: int
    flops: int
    """Of each sample alone."""
    batchings: tuple[Batching, ...]

    def to_dict(self) -> dict[str, Any]:
        names = ("num_samples", "num_tokens", "shortest", "longest", "flops")
        return {
            "scenario": self.scenario.model_dump(mode="json"),
            **{name: getattr(self, name) for name in names},
            "batchings": [batching.to_dict() for batching in self.batchings],
            "notes": list(LENGTH_NOTES),
        }


def length_report(scenario: Scenario, lengths: Iterable[int] | Mapping[int, int]) -> LengthReport:
    """One epoch of samples with these lengths, in tokens (or a mapping: length, number of samples), in micro-batches
    of `scenario`, padded and packed.

    Raises ConfigError where `lengths` are none of samples that fit in sequence_length.
    """
    if scenario.adapter is not None and num_prompt_tokens(scenario.adapter):
        problem = "puts virtual tokens before every row: lengths of samples are not supported with it yet"
        raise ConfigError("adapter.kind", scenario.adapter.kind.value, problem)
    full = estimate(scenario)
    if full.architecture.head is not Head.CAUSAL_LM:
        problem = "is no causal language model: padding needs a mask in it, lengths of samples come later"
        raise ConfigError("model.model_type", full.architecture.model_type, problem)
    histogram = _histogram(lengths, full.scenario)

    @cache
    def flops(length: int) -> int:
        alone = {"micro_batch_size": 1, "sequence_length": length, "gradient_accumulation_steps": 1}
        architecture, workload, plan = resolve(scenario.model_copy(update=alone), full.architecture)
        return step_flops(step_memory(architecture, workload, plan), workload).total

    alone = sum(count * flops(length) for length, count in histogram)
    return LengthReport(
        scenario=full.scenario,
        num_samples=sum(count for _, count in histogram),
        num_tokens=sum(length * count for length, count in histogram),
        shortest=histogram[0][0],
        longest=histogram[-1][0],
        flops=alone,
        batchings=(*_padded(scenario, histogram, flops, alone), *_packed(full, histogram, flops, alone)),
    )


Flops = Callable[[int], int]
"""Of one sequence of so many tokens, forward to backward."""


def _padded(scenario: Scenario, histogram: Histogram, flops: Flops, alone: int) -> Iterator[Batching]:
    num_samples = sum(count for _, count in histogram)
    longest = _of_length(scenario, histogram[-1][0])
    for way, epoch in ((Way.PADDED_RANDOM, random_epoch), (Way.PADDED_SORTED, sorted_epoch)):
        tokens = epoch(lambda length: length, histogram, scenario.micro_batch_size)
        computed = round(epoch(flops, histogram, scenario.micro_batch_size))
        yield Batching(
            way=way,
            num_sequences=num_samples,
            computed_tokens=round(tokens),
            padding_tokens=round(tokens) - sum(length * count for length, count in histogram),
            flops=computed,
            wasted_flops=computed - alone,
            longest=longest,
            mean=_of_length(scenario, ceil(Fraction(tokens, num_samples))),
        )


def _packed(full: Estimate, histogram: Histogram, flops: Flops, alone: int) -> Iterator[Batching]:
    length = full.scenario.sequence_length
    assert length is not None
    bins = first_fit_decreasing(histogram, length)
    num_bins = sum(count for _, count in bins)
    padding = sum(room * count for room, count in bins)
    alone_in_bins = alone + sum(count * flops(room) for room, count in bins if room)
    ways = {Way.PACKED: num_bins * flops(length)}
    if full.step.plan.attention is Attention.FLASH:
        ways[Way.PACKED_VARLEN] = alone_in_bins
    for way, computed in ways.items():
        yield Batching(
            way=way,
            num_sequences=num_bins,
            computed_tokens=num_bins * length,
            padding_tokens=padding,
            flops=computed,
            wasted_flops=computed - alone,
            longest=full,
            mean=full,
        )


def _of_length(scenario: Scenario, length: int) -> Estimate:
    return estimate(scenario.model_copy(update={"sequence_length": length}))


def _histogram(lengths: Iterable[int] | Mapping[int, int], scenario: Scenario) -> Histogram:
    """By rising length, checked."""
    counts: Counter[int] = Counter()
    for length, count in lengths.items() if isinstance(lengths, Mapping) else zip(lengths, repeat(1), strict=False):
        if not _is_size(length) or not _is_size(count):
            raise ConfigError("lengths", length if count == 1 else {length: count}, "should be whole numbers from 1 on")
        counts[int(length)] += int(count)
    num_samples, longest = counts.total(), scenario.sequence_length
    if num_samples < scenario.micro_batch_size:
        needed = f"should be at least micro_batch_size = {scenario.micro_batch_size}"
        raise ConfigError("number of lengths", num_samples, needed)
    if longest is not None and max(counts) > longest:
        raise ConfigError("lengths", max(counts), f"should be at most sequence_length = {longest}")
    return sorted(counts.items())


def _is_size(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


LENGTHS_FILE = "a JSON list, a JSON object of length: number of samples, or one number per line"


def read_lengths(path: str) -> list[int] | dict[int, int]:
    """Lengths from a file, or from standard input for `-`."""
    text = read_text(path, "lengths")
    try:
        content = json.loads(text) if text.lstrip()[:1] in {b"[", b"{"} else list(map(int, text.split()))
        return {int(length): count for length, count in content.items()} if isinstance(content, dict) else content
    except (ValueError, RecursionError):
        raise ConfigError("lengths", path, f"should be {LENGTHS_FILE}") from None
