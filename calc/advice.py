"""What would lower the peak: the scenario with one thing changed, answered again, beside what the change costs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import isqrt
from typing import Any

from .errors import ConfigError
from .estimation import Estimate, estimate
from .scenario import Adapter, AdapterKind, Attention, Loss, Optimizer, Precision, Recompute, Scenario

SUGGESTED_RANK = 16
"""Of the adapters that are suggested to who has none."""


class Effect(StrEnum):
    """What a change does to the training itself, beside its FLOPs."""

    SAME = "same-result"
    """The same numbers, but for the order of sums."""
    ROUNDING = "other-rounding"
    """Fewer digits in weights, gradients or states."""
    UPDATES = "other-updates"
    """Another rule for the weights' updates."""
    FEWER_WEIGHTS = "fewer-weights"
    """Only an adapter is trained."""
    SHORTER = "shorter-sequences"
    """The model sees less at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change that lowers the peak."""

    key: str
    effect: Effect
    scenario: Scenario
    """With the change made."""
    estimate: Estimate
    saved_bytes: int
    """Of peak_allocated_bytes."""
    added_flops: int
    """Per optimizer step; below zero where the change spares some."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the scenario without its defaults, the estimate by its peak."""
        return {
            "key": self.key,
            "effect": self.effect,
            "scenario": self.scenario.model_dump(mode="json", exclude_defaults=True) | {"model": self.scenario.model},
            "peak_allocated_bytes": self.estimate.memory.peak_allocated_bytes,
            "saved_bytes": self.saved_bytes,
            "added_flops": self.added_flops,
            "fits": self.estimate.memory.fits,
        }


Change = Mapping[str, Any]
"""Fields of the Scenario with their new values."""


def advise(scenario: Scenario) -> tuple[Advice, ...]:
    """Every known change of one thing that lowers the peak of `scenario`, what saves most first."""
    return advice_beside(scenario, estimate(scenario))


def advice_beside(scenario: Scenario, current: Estimate) -> tuple[Advice, ...]:
    """The same where `current` answers `scenario` already."""
    better = [advice for advice in _answered(scenario, current) if advice.saved_bytes > 0]
    return tuple(sorted(better, key=lambda advice: (-advice.saved_bytes, advice.added_flops)))


def _answered(scenario: Scenario, current: Estimate) -> Iterator[Advice]:
    for key, (effect, change) in CHANGES.items():
        for fields in change(scenario, current):
            changed = scenario.model_copy(update=dict(fields))
            try:
                answer = estimate(changed)
            except ConfigError:
                continue  # this scenario has no such variant
            yield Advice(
                key=key,
                effect=effect,
                scenario=changed,
                estimate=answer,
                saved_bytes=current.memory.peak_allocated_bytes - answer.memory.peak_allocated_bytes,
                added_flops=answer.flops.total - current.flops.total,
            )


def _half_batch(scenario: Scenario, _: Estimate) -> Iterator[Change]:
    if scenario.micro_batch_size % 2 == 0:
        accumulated = 2 * scenario.gradient_accumulation_steps
        yield {"micro_batch_size": scenario.micro_batch_size // 2, "gradient_accumulation_steps": accumulated}


def _half_sequence(_: Scenario, current: Estimate) -> Iterator[Change]:
    length = current.scenario.sequence_length
    if length is not None and length > 1:
        yield {"sequence_length": length // 2}


EVERY_LAYER: Change = {"recompute_saved_operators": None, "recompute_interval": 1, "recompute_group_size": 1}
"""What a way of recomputation begins from."""


def _recompute(recompute: Recompute) -> Callable[[Scenario, Estimate], Iterator[Change]]:
    def change(_: Scenario, __: Estimate) -> Iterator[Change]:
        yield {**EVERY_LAYER, "recompute": recompute}

    return change


def _every_second(_: Scenario, current: Estimate) -> Iterator[Change]:
    if current.architecture.num_layers > 1:
        yield {**EVERY_LAYER, "recompute": Recompute.FULL, "recompute_interval": 2}


def _groups(_: Scenario, current: Estimate) -> Iterator[Change]:
    """Groups of √L layers keep the least inputs and layers together (Chen et al. 2016, section 3)."""
    size = isqrt(current.architecture.num_layers)
    if size > 1:
        yield {**EVERY_LAYER, "recompute": Recompute.FULL, "recompute_group_size": size}


def _set(field: str, *values: Any) -> Callable[[Scenario, Estimate], Iterator[Change]]:
    """Each of `values` in `field`."""

    def change(scenario: Scenario, _: Estimate) -> Iterator[Change]:
        for value in values:
            if getattr(scenario, field) != value:
                yield {field: value}

    return change


def _half_weights(scenario: Scenario, _: Estimate) -> Iterator[Change]:
    if scenario.precision in {Precision.FP32, Precision.BF16_AUTOCAST, Precision.FP16_AUTOCAST}:
        yield {"precision": Precision.BF16}


def _adapter(kind: AdapterKind) -> Callable[[Scenario, Estimate], Iterator[Change]]:
    def change(scenario: Scenario, _: Estimate) -> Iterator[Change]:
        rank = scenario.adapter.rank if scenario.adapter else SUGGESTED_RANK
        if scenario.adapter is None or scenario.adapter.kind is not kind:
            yield {"adapter": Adapter(kind=kind, rank=rank)}

    return change


CHANGES: Mapping[str, tuple[Effect, Callable[[Scenario, Estimate], Iterator[Change]]]] = {
    "half-batch": (Effect.SAME, _half_batch),
    "flash": (Effect.SAME, _set("attention", Attention.FLASH)),
    "recompute-selective": (Effect.SAME, _recompute(Recompute.SELECTIVE)),
    "recompute-operators": (Effect.SAME, _recompute(Recompute.OPERATORS)),
    "recompute-every-second": (Effect.SAME, _every_second),
    "recompute-full": (Effect.SAME, _recompute(Recompute.FULL)),
    "recompute-groups": (Effect.SAME, _groups),
    "fused-optimizer": (Effect.SAME, _set("optimizer", Optimizer.ADAMW_FUSED)),
    "chunked-loss": (Effect.SAME, _set("loss", Loss.CHUNKED_CROSS_ENTROPY)),
    "fused-loss": (Effect.SAME, _set("loss", Loss.FUSED_LINEAR_CROSS_ENTROPY)),
    "liger-kernels": (Effect.ROUNDING, _set("use_liger_kernel", True)),
    "half-weights": (Effect.ROUNDING, _half_weights),
    "8-bit-optimizer": (Effect.ROUNDING, _set("optimizer", Optimizer.ADAMW_8BIT)),
    "paged-optimizer": (Effect.ROUNDING, _set("optimizer", Optimizer.PAGED_ADAMW_8BIT)),
    "adafactor": (Effect.UPDATES, _set("optimizer", Optimizer.ADAFACTOR)),
    "sgd": (Effect.UPDATES, _set("optimizer", Optimizer.SGD)),
    "lora": (Effect.FEWER_WEIGHTS, _adapter(AdapterKind.LORA)),
    "qlora": (Effect.FEWER_WEIGHTS, _adapter(AdapterKind.QLORA)),
    "half-sequence": (Effect.SHORTER, _half_sequence),
}
"""Every change that is tried, and what it does to the training. A larger GPU is `solve(minimise="gpu")`; sharding over
GPUs and batches of sequences of different lengths come later."""
