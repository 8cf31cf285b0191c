"""Optimizers: which there are, and the states they keep for each trained parameter.

torch.optim of torch 2.13.0; Lion of lion-pytorch 0.2.5; the 8-bit AdamW of bitsandbytes 0.50.2 (optim/optimizer.py,
Optimizer2State.init_state).
"""

from collections.abc import Iterator
from dataclasses import replace

from .dimensions import StateBlocks, StateBytes
from .dtype import DType
from .gradients import gradient_of
from .ledger import Kind, Tensor
from .plan import ADAMW, BITSANDBYTES, Plan
from .recipes import State
from .scenario import Optimizer

MOMENTS = {
    **dict.fromkeys(ADAMW, ("exp_avg", "exp_avg_sq")),
    Optimizer.SGD: (),
    Optimizer.SGD_MOMENTUM: ("momentum_buffer",),
    Optimizer.SGD_NESTEROV: ("momentum_buffer",),
    Optimizer.LION: ("exp_avg",),
    Optimizer.MUON: ("momentum_buffer",),
}
"""States of the parameter's own shape and type."""

CODES = "8-bit codes"
"""The symbol for the 256 codes of a byte, where any state is of bytes."""
QUANTISATION_MAPS = tuple(Tensor(name, (CODES,), DType.FP32, Kind.OPTIMIZER_STATES) for name in ("qmap1", "qmap2"))
"""bitsandbytes' values of the codes, of the signed and of the unsigned state; all parameters share them."""


def optimizer_of(parameter: Tensor, plan: Plan, *, in_layer: bool) -> Optimizer:
    """The optimizer that updates `parameter`: Muon takes the matrices of the layers and leaves the rest to AdamW."""
    if plan.optimizer is Optimizer.MUON and not (in_layer and parameter.num_columns):
        return Optimizer.ADAMW
    return plan.optimizer


def states(parameter: Tensor, optimizer: Optimizer) -> tuple[Tensor, ...]:
    """What `optimizer` keeps of one parameter from the first step on, beside its weight.

    PyTorch's optimizers keep states in the parameter's type; `step` is a CUDA scalar in the fused implementation
    alone.
    """
    if optimizer is Optimizer.ADAFACTOR:
        return tuple(_factored(parameter))
    if optimizer in BITSANDBYTES:
        return tuple(_block_wise(parameter, paged=optimizer is Optimizer.PAGED_ADAMW_8BIT))
    return (*(_state(parameter, name) for name in MOMENTS[optimizer]), *_step_counter(parameter, optimizer))


def kept_between_steps(parameter: Tensor, plan: Plan, *, in_layer: bool) -> tuple[Tensor, ...]:
    """What lives between steps for one trained parameter, beside its weight. A recipe keeps its own types, and no fp32
    gradient copy or master weight is ever freed."""
    if plan.recipe is None:
        own = states(parameter, optimizer_of(parameter, plan, in_layer=in_layer))
    else:
        kept = (state for state in plan.recipe.states if state not in (State.WEIGHTS, State.GRADIENTS))
        own = (
            *(_state(parameter, state, plan.recipe.states[state]) for state in kept),
            *_step_counter(parameter, plan.optimizer),
        )
    return (*own, *persistent_gradient(parameter, plan))


def _factored(parameter: Tensor) -> Iterator[Tensor]:
    """torch/optim/_adafactor.py, _init_group: a matrix keeps the mean squares of its rows and of its columns."""
    if parameter.num_columns:
        rows, columns = sides(parameter)
        yield replace(_state(parameter, "row_var"), shape=rows)
        yield replace(_state(parameter, "col_var"), shape=columns)
    else:
        yield _state(parameter, "variance")


def _block_wise(parameter: Tensor, *, paged: bool) -> Iterator[Tensor]:
    """Two states of a byte per element, each block of 256 elements with its own fp32 scale."""
    for number in "12":
        shape = (StateBytes(parameter.shape, paged),)
        yield Tensor(f"{parameter.name}.state{number}", shape, DType.UINT8, Kind.OPTIMIZER_STATES)
    for number in "12":
        shape = (StateBlocks(parameter.shape),)
        yield Tensor(f"{parameter.name}.absmax{number}", shape, DType.FP32, Kind.OPTIMIZER_STATES)


def _state(parameter: Tensor, name: str, dtype: DType | None = None) -> Tensor:
    return Tensor(f"{parameter.name}.{name}", parameter.shape, dtype or parameter.dtype, Kind.OPTIMIZER_STATES)


def _step_counter(parameter: Tensor, optimizer: Optimizer) -> Iterator[Tensor]:
    if optimizer is Optimizer.ADAMW_FUSED:
        yield Tensor(f"{parameter.name}.step", (), DType.FP32, Kind.OPTIMIZER_STATES)


def sides(matrix: Tensor) -> tuple[tuple, tuple]:
    """The dimensions of a matrix parameter's rows, and those of its columns."""
    return matrix.shape[: -matrix.num_columns], matrix.shape[-matrix.num_columns :]


def persistent_gradient(parameter: Tensor, plan: Plan) -> tuple[Tensor, ...]:
    """The gradient that lives between steps: of a recipe, or where zero_grad keeps it."""
    if plan.recipe is not None:
        return (replace(gradient_of(parameter), shape=parameter.shape, dtype=plan.recipe.states[State.GRADIENTS]),)
    return (gradient_of(parameter),) if gradients_persist(plan) else ()


def gradients_persist(plan: Plan) -> bool:
    """Backward finds the gradients of the step before."""
    return plan.recipe is not None or not plan.zero_grad_set_to_none


def averaged(tensor: Tensor) -> Tensor:
    """Its copy in torch.optim.swa_utils.AveragedModel."""
    return replace(tensor, name=f"ema.{tensor.name}", kind=Kind.WEIGHT_EMA, trainable=False)
