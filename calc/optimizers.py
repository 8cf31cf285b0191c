"""Optimizers: the states they keep for each trained parameter and what one `step()` allocates for a moment (torch
2.13.0, torch/optim)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .dtype import DType
from .ledger import Kind, Tensor
from .lifetimes import Event, gradient_of
from .plan import ADAMW, Plan
from .recipes import State
from .scenario import Optimizer, Precision
from .timeline import Program


def states(parameter: Tensor, plan: Plan) -> tuple[Tensor, ...]:
    """What lives from the first step on for one trained parameter, beside its weight.

    PyTorch's optimizers keep states in the parameter's type; `step` is a CUDA scalar in the fused implementation
    alone. A recipe keeps its
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


def persistent_gradient(parameter: Tensor, plan: Plan) -> tuple[Tensor, ...]:
    """The gradient buffer of a recipe whose gradients live all step long; PyTorch's own loop has none."""
    if plan.recipe is None:
        return ()
    return (replace(gradient_of(parameter), dtype=plan.recipe.states[State.GRADIENTS]),)


def uses_grad_scaler(plan: Plan) -> bool:
    """fp16 under autocast scales its loss."""
    return plan.precision is Precision.FP16_AUTOCAST


@dataclass(frozen=True, slots=True)
class Update:
    """What `step()` and `zero_grad(set_to_none=True)` do with the parameters of one part, as programs."""

    begin: Program
    """Runs for all parts before any `end`."""
    end: Program
    zero_grad: Program


def update(trained: list[Tensor], plan: Plan) -> Update:
    """The programs of `plan`'s optimizer on the parameters `trained`.

    foreach makes the square roots of all second moments together (_multi_tensor_adam); fused and SGD make nothing.
    """
    roots = [_root(_written(parameter, plan)) for parameter in trained if plan.optimizer is Optimizer.ADAMW]
    gradients = [] if plan.recipe else [gradient_of(parameter) for parameter in trained]
    return Update(
        begin=Program([(root, True) for root in roots]),
        end=Program([(root, False) for root in roots]),
        zero_grad=Program([(gradient, False) for gradient in gradients]),
    )


@dataclass(frozen=True, slots=True)
class Loop:
    """The for-loop implementation: per part the programs of its first and of its later repetitions, then the end."""

    parts: tuple[tuple[Program, Program], ...]
    end: Program


def loop(trained_by_part: list[list[Tensor]], plan: Plan) -> Loop | None:
    """_single_tensor_adam, one parameter after another; None for the other implementations."""
    if plan.optimizer is not Optimizer.ADAMW_FOR_LOOP:
        return None
    previous: Tensor | None = None
    parts = []
    for trained in trained_by_part:
        written = [_written(parameter, plan) for parameter in trained]
        last = written[-1] if written else previous
        parts.append((Program(list(_one_by_one(written, previous))), Program(list(_one_by_one(written, last)))))
        previous = last
    return Loop(tuple(parts), Program([(_denominator(previous), False)] if previous else []))


def _one_by_one(parameters: list[Tensor], previous: Tensor | None) -> Iterator[Event]:
    """Per parameter the root, then the denominator, which lives until the next one replaces it."""
    for parameter in parameters:
        yield _root(parameter), True
        yield _denominator(parameter), True
        yield _root(parameter), False
        if previous is not None:
            yield _denominator(previous), False
        previous = parameter


def _written(parameter: Tensor, plan: Plan) -> Tensor:
    """The tensor that `step()` writes: the weight, or a recipe's fp32 master copy of it."""
    return parameter if plan.recipe is None else replace(parameter, dtype=plan.recipe.states[State.MASTER_WEIGHTS])


def _root(parameter: Tensor) -> Tensor:
    return _temporary(parameter, "exp_avg_sq.sqrt()")


def _denominator(parameter: Tensor) -> Tensor:
    return _temporary(parameter, "denom")


def _temporary(parameter: Tensor, name: str) -> Tensor:
    return Tensor(f"{parameter.name}.{name}", parameter.shape, parameter.dtype, Kind.TEMPORARIES)
