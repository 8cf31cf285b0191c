"""gpucalc's core: what a transformer's training step takes, read off a ledger of its tensors.

The engine is loaded when it is first asked for: a program that only writes Scenarios does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .scenario import Adapter, Parallel, Scenario

if TYPE_CHECKING:
    from . import closed_forms
    from .advice import Advice, advise
    from .cache_designs import CacheDesign, cache_designs
    from .catalogue import models
    from .comparison import Comparison, compare
    from .deployment import Deployment, deployments
    from .estimation import Estimate, estimate, estimate_plan
    from .hardware import gpus
    from .lengths import LengthReport, length_report
    from .mixture_designs import ExpertDesign, expert_designs
    from .model_source import load_model
    from .quantisation import CheckpointWeights, checkpoint_weights, weight_bytes
    from .solution import Solution, solve
    from .tradeoff import Tradeoff, recompute_tradeoffs

__all__ = [
    "Adapter",
    "Advice",
    "CacheDesign",
    "CheckpointWeights",
    "Comparison",
    "ConfigError",
    "Deployment",
    "Estimate",
    "ExpertDesign",
    "LengthReport",
    "Parallel",
    "Scenario",
    "Solution",
    "Tradeoff",
    "advise",
    "cache_designs",
    "checkpoint_weights",
    "closed_forms",
    "compare",
    "deployments",
    "estimate",
    "estimate_plan",
    "expert_designs",
    "gpus",
    "length_report",
    "load_model",
    "models",
    "recompute_tradeoffs",
    "solve",
    "weight_bytes",
]

_HOMES = {
    "Advice": ".advice",
    "CacheDesign": ".cache_designs",
    "CheckpointWeights": ".quantisation",
    "Comparison": ".comparison",
    "Deployment": ".deployment",
    "Estimate": ".estimation",
    "ExpertDesign": ".mixture_designs",
    "LengthReport": ".lengths",
    "Solution": ".solution",
    "Tradeoff": ".tradeoff",
    "advise": ".advice",
    "cache_designs": ".cache_designs",
    "checkpoint_weights": ".quantisation",
    "compare": ".comparison",
    "deployments": ".deployment",
    "estimate": ".estimation",
    "estimate_plan": ".estimation",
    "expert_designs": ".mixture_designs",
    "gpus": ".hardware",
    "length_report": ".lengths",
    "load_model": ".model_source",
    "models": ".catalogue",
    "recompute_tradeoffs": ".tradeoff",
    "solve": ".solution",
    "weight_bytes": ".quantisation",
}


def __getattr__(name: str) -> Any:
    if name == "closed_forms":
        return import_module(".closed_forms", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
