"""Optimizers: the states they keep for each trained parameter and what one `step()` allocates for a moment (torch 2.13.0, torch/optim)."""

from collections.abc import Iterator
from dataclasses import replace

from .dtype import DType
from .ledger import Kind, Tensor
from .lifetimes import Event
from .plan import ADAMW, Plan
from .recipes import State
from .scenario import Optimizer


def states(parameter: Tensor, plan: Plan) -> tuple[Tensor, ...]:
    """What lives from the first step on for one trained parameter, beside its weight.

    PyTorch's optimizers keep states in the parameter's type; `step` is a CUDA scalar in the fused implementation alone. A recipe keeps its
    own types, and no fp32 gradient copy or master weight is ever freed.
    """
    recipe = plan.recipe
    if recipe is None:
        kept = [_state(parameter, name, parameter.dtype) for name in MOMENTS[plan.optimizer]]
    else:
        own = (state for state in recipe.states if state not in (State.WEIGHTS, State.GRADIENTS))
        kept = [_state(parameter, state, recipe.states[state]) for state in own]
    if plan.optimizer is Optimizer.ADAMW_FUSED:
        kept.append(Tensor(f"{parameter.name}.step", (), DType.FP32, Kind.OPTIMIZER_STATES))
    return tuple(kept)


def _state(parameter: Tensor, name: str, dtype: DType) -> Tensor:
    return Tensor(f"{parameter.name}.{name}", parameter.shape, dtype, Kind.OPTIMIZER_STATES)


MOMENTS = {
    **dict.fromkeys(ADAMW, ("exp_avg", "exp_avg_sq")),
    Optimizer.SGD: (),
    Optimizer.SGD_MOMENTUM: ("momentum_buffer",),
}


def persistent_gradient(parameter: Tensor, plan: Plan) -> Tensor | None:
    """The gradient buffer of a recipe whose gradients live all step long."""
    if plan.recipe is None:
        return None
    return Tensor(f"∂{parameter.name}", parameter.shape, plan.recipe.states[State.GRADIENTS], Kind.GRADIENTS)


def updated(parameter: Tensor, plan: Plan) -> Tensor:
    """The tensor that `step()` writes: the weight, or a recipe's fp32 master copy of it."""
    return parameter if plan.recipe is None else replace(parameter, dtype=plan.recipe.states[State.MASTER_WEIGHTS])


def foreach_temporaries(parameters: list[Tensor]) -> tuple[list[Event], list[Event]]:
    """_multi_tensor_adam: the square roots of all second moments, made together and freed together."""
    roots = [_temporary(parameter, "exp_avg_sq.sqrt()") for parameter in parameters]
    return [(root, True) for root in roots], [(root, False) for root in roots]


def for_loop_temporaries(parameters: list[Tensor], previous: Tensor | None) -> Iterator[Event]:
    """_single_tensor_adam, per parameter: the root, then the denominator; the last one's `denom` lives until it is replaced."""
    for parameter in parameters:
        root, denominator = _temporary(parameter, "exp_avg_sq.sqrt()"), _temporary(parameter, "denom")
        yield root, True
        yield denominator, True
        yield root, False
        if previous is not None:
            yield _temporary(previous, "denom"), False
        previous = parameter


def _temporary(parameter: Tensor, name: str) -> Tensor:
    return Tensor(f"{parameter.name}.{name}", parameter.shape, parameter.dtype, Kind.TEMPORARIES)
