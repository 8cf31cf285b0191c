"""The user's scenario beside the same with one thing changed: what each saves and what it costs."""

from dataclasses import dataclass

import calc
from calc.scenario import Adapter, Recompute

DEFAULT_RANK = 16


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One changed scenario with its answer."""

    key: str
    scenario: calc.Scenario
    estimate: calc.Estimate
    is_current: bool


def alternatives(scenario: calc.Scenario, estimate: calc.Estimate) -> list[Alternative]:
    """Full training, recomputation and LoRA under the user's other choices, the least change first."""
    return [_answered(key, changed, scenario, estimate) for key, changed in _changes(scenario)]


def nearest_that_fits(rows: list[Alternative]) -> Alternative | None:
    """The first alternative that fits the GPU."""
    return next((row for row in rows if row.estimate.memory.fits), None)


def needed_bytes(estimate: calc.Estimate) -> int:
    """Bytes of GPU memory that the step needs: the peak of its tensors, library workspaces and the context."""
    memory = estimate.memory
    return memory.peak_allocated_bytes + (memory.library_workspace_bytes or 0) + (memory.assumed_context_bytes or 0)


def lora_rank(scenario: calc.Scenario) -> int:
    """The rank that the LoRA alternatives use."""
    return scenario.adapter.rank if scenario.adapter else DEFAULT_RANK


def _changes(scenario: calc.Scenario) -> list[tuple[str, calc.Scenario]]:
    adapter = scenario.adapter or Adapter(rank=DEFAULT_RANK)
    changes = {
        "full_training": {"adapter": None, "recompute": Recompute.NONE},
        "selective": {"adapter": None, "recompute": Recompute.SELECTIVE},
        "full": {"adapter": None, "recompute": Recompute.FULL},
        "lora": {"adapter": adapter, "recompute": Recompute.NONE},
        "lora_full": {"adapter": adapter, "recompute": Recompute.FULL},
    }
    if scenario.micro_batch_size % 2 == 0:
        halved = {
            "micro_batch_size": scenario.micro_batch_size // 2,
            "gradient_accumulation_steps": scenario.gradient_accumulation_steps * 2,
        }
        changes = {"half_batch": halved, **changes}
    return [(key, scenario.model_copy(update=change)) for key, change in changes.items()]


def _answered(key: str, changed: calc.Scenario, scenario: calc.Scenario, estimate: calc.Estimate) -> Alternative:
    is_current = changed == scenario
    return Alternative(
        key=key, scenario=changed, estimate=estimate if is_current else calc.estimate(changed), is_current=is_current
    )
