"""The user's scenario as full training, with recomputation and with LoRA: what each needs and saves."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import calc
from calc.advice import SUGGESTED_RANK
from calc.scenario import Adapter, AdapterKind, Recompute, Task

SUGGESTED = Adapter(rank=SUGGESTED_RANK)


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One changed scenario with its answer."""

    key: str
    scenario: calc.Scenario
    estimate: calc.Estimate
    is_current: bool


PLAIN: Mapping[str, Any] = {
    "recompute_saved_operators": None,
    "recompute_interval": 1,
    "recompute_group_size": 1,
    "recompute_offload": False,
    "frozen_layers": 0,
}
"""What full training, recomputation of every layer and LoRA go with."""


def alternatives(scenario: calc.Scenario, estimate: calc.Estimate) -> list[Alternative]:
    """Full training, recomputation and LoRA under the user's other choices, the least change first; before them the
    user's own scenario, where it is none of these. None for inference, which trains nothing."""
    if scenario.task is Task.INFERENCE:
        return []
    adapter = scenario.adapter if scenario.adapter and scenario.adapter.kind is AdapterKind.LORA else SUGGESTED
    changes = {
        "full_training": (None, Recompute.NONE),
        "selective": (None, Recompute.SELECTIVE),
        "full": (None, Recompute.FULL),
        "lora": (adapter, Recompute.NONE),
        "lora_full": (adapter, Recompute.FULL),
    }
    scenarios = {
        key: scenario.model_copy(update={**PLAIN, "adapter": adapter, "recompute": recompute})
        for key, (adapter, recompute) in changes.items()
    }
    if scenario not in scenarios.values():
        scenarios = {"current": scenario, **scenarios}
    return list(_answered(scenarios, scenario, estimate))


def _answered(
    scenarios: Mapping[str, calc.Scenario], current: calc.Scenario, estimate: calc.Estimate
) -> Iterator[Alternative]:
    for key, changed in scenarios.items():
        is_current = changed == current
        try:
            answer = estimate if is_current else calc.estimate(changed)
        except calc.ConfigError:
            continue  # these choices have no such variant
        yield Alternative(key=key, scenario=changed, estimate=answer, is_current=is_current)


def needed_bytes(estimate: calc.Estimate) -> int:
    """Bytes of GPU memory that the step needs: the peak of its tensors, library workspaces and the context."""
    memory = estimate.memory
    return memory.peak_allocated_bytes + (memory.library_workspace_bytes or 0) + (memory.assumed_context_bytes or 0)


def lora_rank(scenario: calc.Scenario) -> int:
    """The rank that the LoRA alternatives use."""
    return (scenario.adapter or SUGGESTED).rank
