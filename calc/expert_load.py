"""How the tokens of a mixture spread over its experts, and what a Scenario may ask of that."""

from fractions import Fraction

from .architecture import Architecture, Experts, Layer
from .errors import ConfigError
from .kinds import Mixture
from .scenario import ExpertLoad, ExpertsImplementation, Recompute, Scenario

FIELD, HOW = "expert_load", "experts_implementation"
MOST_LOOPED = 512
"""No known model has more experts; each is written down by itself."""
Load = ExpertLoad | tuple[float, ...]
"""Even, worst, or a histogram: what each expert gets, in any unit."""


def tokens_of_experts(load: Load, experts: Experts, num_tokens: int) -> list[int]:
    """How many of `num_tokens` come to each expert; together `num_experts_per_tok` of each token.

    worst: all to the same. A histogram's fractions of tokens go to the largest remainders.
    """
    chosen, count = experts.num_experts_per_tok, experts.num_experts
    if load == ExpertLoad.WORST:
        return [num_tokens] * chosen + [0] * (count - chosen)
    shares = [Fraction(1)] * count if isinstance(load, ExpertLoad) else [Fraction(each) for each in load]
    whole = sum(shares)
    exact = [chosen * num_tokens * share / whole for share in shares]
    tokens = [int(each) for each in exact]
    left = chosen * num_tokens - sum(tokens)
    for index in sorted(range(count), key=lambda index: tokens[index] - exact[index])[:left]:
        tokens[index] += 1
    return tokens


def tokens_of(number: int) -> str:
    """The symbol of how many tokens come to one of the experts that get any."""
    return f"tokens of expert {number}"


def expert_load(scenario: Scenario, architecture: Architecture) -> Load:
    """The load, once it is clear that there are experts, and as many as it speaks of."""
    mixed = [layer for layer, _ in architecture.layers if layer.experts]
    obstacle = _obstacle(architecture, mixed)
    for field in (FIELD, HOW):
        value = getattr(scenario, field)
        if obstacle and value != Scenario.model_fields[field].default:
            raise ConfigError(field, list(value) if isinstance(value, tuple) else value.value, obstacle)
    in_a_loop = scenario.experts_implementation is ExpertsImplementation.EAGER
    if in_a_loop and scenario.recompute is Recompute.OPERATORS:
        raise ConfigError(HOW, "eager", "is not supported yet with recompute = operators")
    most = max((layer.experts.num_experts for layer in mixed if layer.experts), default=0)
    if in_a_loop and most > MOST_LOOPED:
        raise ConfigError(HOW, "eager", f"is for at most {MOST_LOOPED} experts, of which each has tensors of its own")
    if not isinstance(scenario.expert_load, ExpertLoad):
        for layer in mixed:
            _check_histogram(scenario.expert_load, layer.experts)
    return scenario.expert_load


def _obstacle(architecture: Architecture, mixed: list[Layer]) -> str | None:
    if not mixed:
        return f"is for mixtures of experts, which {architecture.model_type} is not"
    if any(isinstance(layer.kind.mlp, Mixture) and layer.kind.mlp.runs_all_experts for layer in mixed):
        return "is for models that choose experts: transformers sends every token of this one through all of them"
    return None


def _check_histogram(load: tuple[float, ...], experts: Experts | None) -> None:
    assert experts is not None
    problem = None
    if len(load) != experts.num_experts:
        problem = f"should be even, worst or {experts.num_experts} numbers, one for each expert"
    elif not sum(load):
        problem = "should have a number above 0"
    elif max(map(Fraction, load)) * experts.num_experts_per_tok > sum(map(Fraction, load)):
        problem = (
            f"should give no expert more than 1/{experts.num_experts_per_tok} of all: "
            "a token goes to an expert at most once"
        )
    if problem:
        raise ConfigError(FIELD, list(load), problem)
