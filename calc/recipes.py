"""Training recipes: which states exist for every trained parameter, and of what type.

A recipe's bytes per parameter are the sum of its states. Optimizers and closed forms read them here.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from .dtype import DType
from .errors import ConfigError


class State(StrEnum):
    """What is held once per trained parameter."""

    WEIGHTS = "weights"
    GRADIENTS = "gradients"
    MASTER_WEIGHTS = "master_weights"
    GRADIENT_COPY = "gradient_copy"
    FIRST_MOMENT = "first_moment"
    SECOND_MOMENT = "second_moment"


class Recipe(NamedTuple):
    """The states of Adam training, each with its type, and where the count comes from."""

    states: Mapping[State, DType]
    source: str

    @property
    def bytes_per_parameter(self) -> int:
        """All states together."""
        return sum(dtype.nbytes(1) for dtype in self.states.values())


def _recipe(source: str, **states: DType) -> Recipe:
    return Recipe(states=MappingProxyType({State(name): dtype for name, dtype in states.items()}), source=source)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "textbook-20": _recipe(
            "(Φ+Φ)·2 + (Φ+Φ+2Φ)·4; Megatron Core, Distributed Optimizer: float16 parameters, float16 gradients",
            weights=DType.BF16,
            gradients=DType.BF16,
            master_weights=DType.FP32,
            gradient_copy=DType.FP32,
            first_moment=DType.FP32,
            second_moment=DType.FP32,
        ),
        "megatron-18": _recipe(
            "Megatron Core, Distributed Optimizer: float16 parameters, fp32 gradients",
            weights=DType.BF16,
            gradients=DType.FP32,
            master_weights=DType.FP32,
            first_moment=DType.FP32,
            second_moment=DType.FP32,
        ),
        "zero-16": _recipe(
            "Rajbhandari et al. 2020, ZeRO, section 3.1: 2Ψ + 2Ψ + 12Ψ",
            weights=DType.BF16,
            gradients=DType.BF16,
            master_weights=DType.FP32,
            first_moment=DType.FP32,
            second_moment=DType.FP32,
        ),
        "autocast-16": _recipe(
            "PyTorch, torch.autocast: weights, gradients and Adam's moments stay fp32",
            weights=DType.FP32,
            gradients=DType.FP32,
            first_moment=DType.FP32,
            second_moment=DType.FP32,
        ),
        "half-8": _recipe(
            "PyTorch, a model in half precision: torch.optim.AdamW keeps its moments in the parameter's type",
            weights=DType.BF16,
            gradients=DType.BF16,
            first_moment=DType.BF16,
            second_moment=DType.BF16,
        ),
    }
)
"""By name, which ends in the bytes per parameter. `bf16` stands for either half type: their sizes are equal."""


def recipe_named(name: str) -> Recipe:
    """The recipe called `name`."""
    if name not in RECIPES:
        raise ConfigError("recipe", name, f"should be one of {', '.join(RECIPES)}")
    return RECIPES[name]
