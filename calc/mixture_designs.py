"""The same mixture of experts cut finer and coarser, each answered by the ledger.

Splitting every expert into m, and choosing m times as many for a token, keeps the experts' weights and products as they
are, and lets a token combine its experts in far more ways (Dai et al. 2024, "DeepSeekMoE", section 3.1: 16 experts of
which 2 are chosen are 120 combinations, 64 of which 8 are 4,426,165,368). What it costs are a wider router and more
activations: every expert keeps its input and its output.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from .architecture import Architecture, Layer
from .closed_forms import expert_activation_bytes, expert_capacity, expert_combinations
from .errors import ConfigError
from .estimation import Estimate, estimate_plan
from .expert_load import tokens_of_experts
from .hardware import gpu_named
from .kinds import Mixture
from .model_source import load_model
from .plan import resolve
from .scenario import Scenario

SPLIT = 4
"""As in the paper's example."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertDesign:
    """A model with its experts cut in some way."""

    num_experts: int
    num_experts_per_tok: int
    expert_size: int
    """The intermediate size of one."""
    combinations: int
    """Ways to choose a token's experts, whatever their groups."""
    capacity: int
    """Tokens of the micro-batch that come to each expert when they are spread evenly."""
    largest_load: int
    """Tokens of the expert that gets most of them, as `expert_load` spreads them."""
    dropped: int
    """How often a token's expert would have no place left for it, with a capacity of that many tokens each."""
    capacity_bytes: int
    """Activations that the experts of one layer keep at most with that capacity, in half precision."""
    is_asked: bool
    """The model as it is."""
    estimate: Estimate

    def to_dict(self) -> dict[str, Any]:
        answer = self.estimate
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "estimate"}
        return own | {
            "parameters_total": answer.parameters.total,
            "active_per_token": answer.parameters.active_per_token,
            "model_flops_per_token": answer.flops.model_flops_per_token,
            "saved_activation_bytes": answer.memory.saved_activation_bytes,
            "peak_allocated_bytes": answer.memory.peak_allocated_bytes,
        }


def expert_designs(scenario: Scenario) -> tuple[ExpertDesign, ...]:
    """The scenario's mixture with four experts put together, as it is, and with each expert split into four: those
    there can be. Raises ConfigError for a model without experts."""
    architecture = load_model(scenario.model)
    if not any(layer.experts for layer, _ in architecture.layers):
        raise ConfigError("model", scenario.model, "has no mixture of experts")
    asked = _design(scenario, architecture, is_asked=True)
    coarser, finer = (list(_other(scenario, architecture, cut)) for cut in (Fraction(1, SPLIT), Fraction(SPLIT)))
    return (*coarser, asked, *finer)


def _other(scenario: Scenario, architecture: Architecture, cut: Fraction) -> Iterator[ExpertDesign]:
    """The design with `cut` times as many experts, unless its sizes are none that experts can have."""
    design = _cut(architecture, cut)
    if design is not None:
        with suppress(ConfigError):
            yield _design(scenario, design, is_asked=False)


def _cut(architecture: Architecture, cut: Fraction) -> Architecture | None:
    """`architecture` with `cut` times as many experts, each as much smaller; None where that does not come out even."""
    layers = [(_cut_layer(layer, cut), count) for layer, count in architecture.layers]
    whole = [(layer, count) for layer, count in layers if layer is not None]
    return replace(architecture, layers=tuple(whole)) if len(whole) == len(layers) else None


def _cut_layer(layer: Layer, cut: Fraction) -> Layer | None:
    experts, mixture = layer.experts, layer.kind.mlp
    if experts is None or not isinstance(mixture, Mixture):
        return layer
    count, chosen, size = cut * experts.num_experts, cut * experts.num_experts_per_tok, layer.intermediate_size / cut
    if any(part.denominator > 1 for part in (count, chosen, size, count / experts.num_groups)):
        return None
    return replace(
        layer,
        kind=replace(layer.kind, mlp=replace(mixture, one_expert_per_token=chosen == 1)),
        experts=replace(experts, num_experts=int(count), num_experts_per_tok=int(chosen)),
        intermediate_size=int(size),
    )


def _design(scenario: Scenario, architecture: Architecture, *, is_asked: bool) -> ExpertDesign:
    layer, experts = next((layer, layer.experts) for layer, _ in architecture.layers if layer.experts)
    resolved, workload, plan = resolve(scenario, architecture)
    counts = {"num_experts": experts.num_experts, "experts_per_token": experts.num_experts_per_tok}
    num_tokens = workload.micro_batch_size * workload.sequence_length
    capacity = expert_capacity(num_tokens=num_tokens, **counts)
    loads = tokens_of_experts(plan.expert_load, experts, num_tokens)
    return ExpertDesign(
        num_experts=experts.num_experts,
        num_experts_per_tok=experts.num_experts_per_tok,
        expert_size=layer.intermediate_size,
        combinations=expert_combinations(**counts),
        capacity=capacity,
        largest_load=max(loads),
        dropped=sum(max(0, load - capacity) for load in loads),
        capacity_bytes=expert_activation_bytes(
            num_experts=experts.num_experts,
            capacity=capacity,
            hidden_size=architecture.hidden_size,
            expert_size=layer.intermediate_size,
        ),
        is_asked=is_asked,
        estimate=estimate_plan(resolved, workload, plan, gpu_named(scenario.gpu) if scenario.gpu else None),
    )
