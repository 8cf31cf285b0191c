"""gpucalc's core: what a transformer's training step takes, read off a ledger of its tensors."""

from . import closed_forms
from .catalogue import models
from .errors import ConfigError
from .estimate import Estimate, estimate, estimate_plan
from .hardware import gpus
from .model_source import load_model
from .scenario import Adapter, Parallel, Scenario

__all__ = [
    "Adapter",
    "ConfigError",
    "Estimate",
    "Parallel",
    "Scenario",
    "closed_forms",
    "estimate",
    "estimate_plan",
    "gpus",
    "load_model",
    "models",
]
