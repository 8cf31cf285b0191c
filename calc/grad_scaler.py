"""What torch.amp.GradScaler holds, and makes around an optimizer's step: scalars (torch 2.13.0, amp/grad_scaler.py)."""

from collections.abc import Iterable

from .dtype import DType
from .ledger import Kind, Tensor
from .lifetimes import Event
from .plan import Plan
from .scenario import Optimizer, Precision
from .timeline import Program


def uses_grad_scaler(plan: Plan) -> bool:
    """fp16 under autocast scales its loss."""
    return plan.precision is Precision.FP16_AUTOCAST


HELD = tuple(Tensor(f"GradScaler.{name}", (), DType.FP32, Kind.BUFFERS) for name in ("_scale", "_growth_tracker"))
"""On the device for good."""


def _scalar(name: str) -> Tensor:
    return Tensor(f"GradScaler.{name}", (), DType.FP32, Kind.TEMPORARIES)


def _found_inf(optimizer: Optimizer) -> Tensor:
    """The flag of one optimizer's gradients; lives until update()."""
    return _scalar(f"found_inf of {optimizer}")


def _checked(optimizer: Optimizer, inverse: Iterable[Event]) -> list[Event]:
    """_unscale_grads_: scale and flag are copied for the device, and the flag's copy stays."""
    flag, flag_master = _found_inf(optimizer), _scalar("found_inf.master")
    scale, scale_copy = _scalar("inv_scale"), _scalar("inv_scale.copy")
    made = [*inverse, (flag_master, True), (flag, True), (scale_copy, True)]
    return [*made, (scale_copy, False), (flag_master, False), (scale, False)]


def _unscaled(optimizer: Optimizer) -> list[Event]:
    """unscale_: the inverse of the scale by way of fp64."""
    double, reciprocal, inverse = map(_scalar, ("scale.double", "scale.reciprocal", "inv_scale"))
    by_way = [(double, True), (reciprocal, True), (double, False), (inverse, True), (reciprocal, False)]
    return _checked(optimizer, by_way)


def unscale(optimizers: Iterable[Optimizer], plan: Plan) -> Program:
    """`scaler.unscale_(optimizer)` for each, as it precedes clipping."""
    if not uses_grad_scaler(plan):
        return Program(())
    return Program([event for optimizer in optimizers for event in _unscaled(optimizer)])


def around_step(optimizer: Optimizer, plan: Plan, *, unscaled: bool) -> tuple[Program, Program]:
    """What `scaler.step(optimizer)` makes before the optimizer's own step, and frees after it.

    The fused AdamW takes the scale itself: its gradients are only looked through.
    """
    if not uses_grad_scaler(plan):
        return Program(()), Program(())
    if optimizer is not Optimizer.ADAMW_FUSED:
        return Program(() if unscaled else _unscaled(optimizer)), Program(())
    looked_through = () if unscaled else _checked(optimizer, [(_scalar("inv_scale"), True)])
    handed = [_scalar("found_inf.sum"), *(() if unscaled else (_scalar("grad_scale"),))]
    return (
        Program([*looked_through, *((tensor, True) for tensor in handed)]),
        Program([(tensor, False) for tensor in handed]),
    )


def update(optimizers: Iterable[Optimizer], plan: Plan) -> Program:
    """`scaler.update()`."""
    return Program([(_found_inf(optimizer), False) for optimizer in optimizers] if uses_grad_scaler(plan) else ())
