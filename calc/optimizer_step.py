"""What the optimizer phase allocates and frees: clipping, `step()`, the averaged weights, `zero_grad()`.

Sources (torch 2.13.0): torch/optim, torch/nn/utils/clip_grad.py, torch/optim/swa_utils.py; lion_pytorch/lion_pytorch.py
(0.2.5). An 8-bit AdamW makes nothing outside its kernels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

from . import grad_scaler
from .dtype import DType
from .frames import Frame
from .gradients import gradient_of, summed_in_fp32
from .ledger import Kind, Tensor
from .lifetimes import Event
from .optimizer_loops import LOOPS, Update, temporary
from .optimizers import QUANTISATION_MAPS, gradients_persist, optimizer_of, states
from .plan import BITSANDBYTES, Plan
from .recipes import State
from .scenario import Optimizer
from .timeline import Program

Part = tuple[tuple[tuple[Tensor, ...], int], ...]
"""Parameters of layers that follow each other, each so many times."""
Parts = Sequence[Part]
"""Parameters by the part of the model they belong to, in its order."""
KEPT_PHASES = 256
"""How many optimizer phases are kept."""
KEPT_PROGRAMS = 1024
"""How many programs of one layer's parameters are kept."""

NUM_GRADIENTS = "gradients"
"""The symbol for the number of gradients that are clipped."""


def norm_chunks(dtype: DType) -> str:
    """The symbol for the partial norms of the gradients of one type."""
    return f"chunks of {dtype.label} gradients"


MAKES_STATES_ON_THE_WAY = frozenset({Optimizer.LION, Optimizer.MUON})
"""Lion makes each state in its loop; Muon's are all there before AdamW makes its own."""


Turns = tuple[tuple[int, Program], ...]
"""What happens in order, each with the index of the part whose sizes its tensors have."""
LAST_PART = -1


class Pass(NamedTuple):
    """One way over all parts of the model in order, then `end`."""

    parts: tuple[tuple[Turns, Turns], ...] = ()
    """Of each part its first and its later repetitions; empty where no part has a share."""
    end: Turns = ()

    @property
    def does_something(self) -> bool:
        turns = (*(turns for pair in self.parts for turns in pair), self.end)
        return any(program.steps for each in turns for _, program in each)


class OptimizerStep(NamedTuple):
    """The optimizer phase."""

    clipping: tuple[Pass, ...]
    """After the sums in fp32 were handed over, where there are any."""
    first_update: tuple[Pass, ...]
    """`step()` when it makes its states."""
    update: tuple[Pass, ...]
    """`step()` from then on."""
    ending: tuple[Pass, ...]
    """The averaged weights and zero_grad()."""
    makes_states_first: bool
    """The first `step()` makes all its states before anything else."""

    @property
    def first(self) -> tuple[Pass, ...]:
        """The phase in the first step; the average's first update copies, and makes nothing."""
        return (*self.clipping, *self.first_update, self.ending[-1])

    @property
    def steady(self) -> tuple[Pass, ...]:
        """The phase in all later steps."""
        return (*self.clipping, *self.update, *self.ending)


@lru_cache(maxsize=KEPT_PHASES)
def optimizer_step(trained: tuple[Part, ...], in_layers: tuple[bool, ...], plan: Plan) -> OptimizerStep:
    """The optimizer phase of `plan`, one for all ways of recomputation, on the parameters `trained`; `in_layers` tells
    which parts are layers."""
    shares = dict(_shares(trained, in_layers, plan))
    return OptimizerStep(
        clipping=tuple(_useful(_clipping(trained, shares, plan))),
        first_update=tuple(_useful(_update(shares, plan, is_first=plan.recipe is None))),
        update=tuple(_useful(_update(shares, plan, is_first=False))),
        ending=tuple(_ending(trained, plan)),
        makes_states_first=not (plan.optimizer in MAKES_STATES_ON_THE_WAY or grad_scaler.uses_grad_scaler(plan)),
    )


def _shares(trained: Parts, in_layers: Sequence[bool], plan: Plan) -> Iterator[tuple[Optimizer, Parts]]:
    """Each optimizer that has anything to do, and its parameters. AdamW takes what Muon leaves."""
    for optimizer in dict.fromkeys((plan.optimizer, Optimizer.ADAMW)):
        parts = [
            tuple(
                (tuple(each for each in tensors if optimizer_of(each, plan, in_layer=in_layer) is optimizer), times)
                for tensors, times in part
            )
            for part, in_layer in zip(trained, in_layers, strict=True)
        ]
        if any(map(_tensors, parts)):
            yield optimizer, parts


def _tensors(part: Part) -> list[Tensor]:
    return [tensor for tensors, times in part for tensor in tensors * times]


def _useful(passes: Iterable[Pass]) -> Iterator[Pass]:
    return (each for each in passes if each.does_something)


def _clipping(trained: Parts, shares: dict[Optimizer, Parts], plan: Plan) -> Iterator[Pass]:
    if plan.accumulate_grads_in_fp32:
        yield _every(trained, _handed_over)
    if plan.max_grad_norm is not None:
        yield _once(grad_scaler.unscale(shares, plan))
        yield from _clip(trained)


def _update(shares: dict[Optimizer, Parts], plan: Plan, *, is_first: bool) -> Iterator[Pass]:
    """`step()` of each optimizer, by way of the scaler where there is one."""
    for optimizer, parts in shares.items():
        before, after = grad_scaler.around_step(optimizer, plan, unscaled=plan.max_grad_norm is not None)
        yield _once(before)
        yield from _step(optimizer, parts, plan, is_first=is_first)
        yield _once(after)
    yield _once(grad_scaler.update(shares, plan))


def _ending(trained: Parts, plan: Plan) -> Iterator[Pass]:
    """The averaged weights, whose counter goes to the device from the second step on; zero_grad()."""
    if plan.weight_ema:
        yield _once(_moment(Tensor("ema.n_averaged on the device", (), DType.INT64, Kind.TEMPORARIES)))
    yield _every(trained, _nothing if gradients_persist(plan) else _cleared)


def _handed_over(parameter: Tensor) -> list[Event]:
    return [(gradient_of(parameter), True), (summed_in_fp32(parameter), False)]


def _cleared(parameter: Tensor) -> list[Event]:
    return [(gradient_of(parameter), False)]


def _nothing(_: Tensor) -> list[Event]:
    return []


def _step(optimizer: Optimizer, parts: Parts, plan: Plan, *, is_first: bool) -> Iterator[Pass]:
    """`step()` of one optimizer. SGD, the fused and the 8-bit AdamW make nothing for a moment."""

    written = [
        tuple((tuple(_written(each, plan) for each in tensors), times) for tensors, times in part) for part in parts
    ]
    if optimizer is Optimizer.LION:  # which makes each state when its turn comes
        yield _loop(LOOPS[optimizer], written, partial(states, optimizer=optimizer) if is_first else _no_states)
        return
    if is_first:
        yield _every(parts, _states_made, optimizer)
    if is_first and optimizer in BITSANDBYTES:
        yield _once(Program(_allocated(QUANTISATION_MAPS)))
    if optimizer is Optimizer.ADAMW:
        yield from _adamw(written)
    elif optimizer in LOOPS:
        yield _loop(LOOPS[optimizer], written)


def _written(parameter: Tensor, plan: Plan) -> Tensor:
    """The tensor that `step()` writes: the weight, or a recipe's fp32 master copy of it."""
    return parameter if plan.recipe is None else replace(parameter, dtype=plan.recipe.states[State.MASTER_WEIGHTS])


def _adamw(parts: Parts) -> Iterator[Pass]:
    """_multi_tensor_adam: the square roots of all second moments of one type together; those of the type before are
    still held."""
    previous: DType | None = None
    for dtype in _types(parts):
        yield _every(parts, _roots_made, dtype)
        if previous is not None:
            yield _every(parts, _roots_freed, previous)
        previous = dtype
    yield _every(parts, _roots_freed, previous)


def _roots(parameter: Tensor, dtype: DType | None) -> list[Tensor]:
    return [temporary(parameter, "exp_avg_sq.sqrt()")] if parameter.dtype is dtype else []


def _states_made(parameter: Tensor, optimizer: Optimizer) -> list[Event]:
    return _allocated(states(parameter, optimizer))


def _roots_made(parameter: Tensor, dtype: DType) -> list[Event]:
    return _allocated(_roots(parameter, dtype))


def _roots_freed(parameter: Tensor, dtype: DType) -> list[Event]:
    return _freed(_roots(parameter, dtype))


def _types(parts: Parts) -> list[DType]:
    """The types of the parameters: foreach takes tensors of one type together."""
    return list(dict.fromkeys(tensor.dtype for part in parts for tensors, _ in part for tensor in tensors))


def _clip(parts: Parts) -> Iterator[Pass]:
    """clip_grad_norm_: a norm per gradient, by way of its chunks' (foreach_tensor_norm_cuda); the norm of the norms."""
    for dtype in _types(parts):
        chunks = Tensor("norms of chunks", (norm_chunks(dtype),), DType.FP32, Kind.TEMPORARIES)
        yield _once(Program(_allocated([chunks])))
        yield _every(parts, _norms_made, dtype)
        yield _once(Program(_freed([chunks])))
    frame = Frame()
    frame.turn = LAST_PART
    dtype = max(_types(parts), key=lambda dtype: dtype.itemsize)
    frame.make("stack", Tensor("norms", (NUM_GRADIENTS,), dtype, Kind.TEMPORARIES))
    frame.make("total_norm", _clip_scalar("total_norm"))
    frame.drop("stack")
    yield Pass(end=tuple(frame.programs()))
    for dtype in _types(parts):
        yield _every(parts, _norms_freed, dtype)
    for name in ("total_norm + 1e-6", "its reciprocal", "clip_coef"):  # max_norm / (total_norm + 1e-6)
        frame.make(name, _clip_scalar(name))
    frame.drop("total_norm + 1e-6", "its reciprocal")
    frame.make("clip_coef_clamped", _clip_scalar("clip_coef_clamped"))
    frame.drop_all()
    yield Pass(end=tuple(frame.programs()))


def _norms(parameter: Tensor, dtype: DType) -> list[Tensor]:
    return [replace(temporary(parameter, "grad.norm"), shape=())] if parameter.dtype is dtype else []


def _norms_made(parameter: Tensor, dtype: DType) -> list[Event]:
    return _allocated(_norms(parameter, dtype))


def _norms_freed(parameter: Tensor, dtype: DType) -> list[Event]:
    return _freed(_norms(parameter, dtype))


def _clip_scalar(name: str) -> Tensor:
    return Tensor(f"clip_grad_norm_.{name}", (), DType.FP32, Kind.TEMPORARIES)


def _no_states(_: Tensor) -> tuple[Tensor, ...]:
    return ()


def _loop(update: Update, parts: Parts, made: Callable[[Tensor], Iterable[Tensor]] = _no_states) -> Pass:
    """One parameter after another, in one frame; `made` are the states that are made when it is its turn."""
    frame = Frame()
    programs = []
    for frame.turn, part in enumerate(parts):
        both = []
        for _ in range(2):
            for tensor in _tensors(part):
                frame.keep(made(tensor))
                update(frame, tensor)
            both.append(tuple(frame.programs()))
        programs.append((both[0], both[1]))
    frame.drop_all()
    return Pass(tuple(programs), tuple(frame.programs()))


def _every(parts: Parts, events: Callable[..., list[Event]], *of: Any) -> Pass:
    """The same events for each parameter, whichever layer it belongs to."""
    programs = {
        part: Program.in_a_row((_of_each(tensors, events, *of), times) for tensors, times in part)
        for part in dict.fromkeys(parts)
    }
    turns = [((index, programs[part]),) for index, part in enumerate(parts)]
    return Pass(tuple((each, each) for each in turns))


@lru_cache(maxsize=KEPT_PROGRAMS)
def _of_each(parameters: tuple[Tensor, ...], events: Callable[..., list[Event]], *of: Any) -> Program:
    """Equal layers share it, also those of steps that differ in what is recomputed."""
    return Program([event for parameter in parameters for event in events(parameter, *of)])


def _once(program: Program) -> Pass:
    return Pass(end=((LAST_PART, program),))


def _moment(tensor: Tensor) -> Program:
    return Program([(tensor, True), (tensor, False)])


def _allocated(tensors: Iterable[Tensor]) -> list[Event]:
    return [(tensor, True) for tensor in tensors]


def _freed(tensors: Iterable[Tensor]) -> list[Event]:
    return [(tensor, False) for tensor in tensors]
