"""Optimizers that update one parameter after another: what each makes on the way, in the order of its code.

Sources: torch/optim/adam.py, _adafactor.py (whose default is the loop) and _muon.py of torch 2.13.0;
lion_pytorch/lion_pytorch.py of lion-pytorch 0.2.5.
"""

from collections.abc import Callable

from .dimensions import Shorter
from .dtype import DType
from .frames import Frame
from .ledger import Kind, Shape, Tensor
from .optimizers import sides
from .scenario import Optimizer

Update = Callable[[Frame, Tensor], None]
"""The update of one parameter in the frame of the loop."""

NEWTON_SCHULZ_STEPS = 5
"""torch/optim/_muon.py, DEFAULT_NS_STEPS."""


def temporary(parameter: Tensor, name: str, shape: Shape | None = None, dtype: DType | None = None) -> Tensor:
    """A tensor made while `parameter` is updated; as large as it unless said otherwise."""
    return Tensor(
        name=f"{parameter.name}.{name}",
        shape=parameter.shape if shape is None else shape,
        dtype=dtype or parameter.dtype,
        kind=Kind.TEMPORARIES,
    )


def adam(frame: Frame, parameter: Tensor) -> None:
    """_single_tensor_adam: the root, then the denominator, which lives until the next one replaces it."""
    frame.make("exp_avg_sq.sqrt()", temporary(parameter, "exp_avg_sq.sqrt()"))
    frame.make("denom", temporary(parameter, "denom"))
    frame.drop("exp_avg_sq.sqrt()")


def lion(frame: Frame, parameter: Tensor) -> None:
    """update_fn: the clone of the momentum, and its sum with the gradient."""
    frame.make("clone", temporary(parameter, "exp_avg.clone()"))
    frame.make("update", temporary(parameter, "update"))
    frame.drop("clone", "update")


def adafactor(frame: Frame, parameter: Tensor) -> None:
    """_single_tensor_adafactor: the loop's variables go on holding the tensors of the last matrix and vector."""
    frame.moment(temporary(parameter, "norm", ()))
    if parameter.num_columns:
        rows, columns = sides(parameter)
        frame.make("row_mean", temporary(parameter, "row_mean", rows))
        frame.make("col_mean", temporary(parameter, "col_mean", columns))
        frame.make("var_estimate", temporary(parameter, "var_estimate"))
        frame.moment(temporary(parameter, "row_var.mean()", ()))
    else:
        frame.make("grad_squared", temporary(parameter, "grad_squared"))
        frame.make("var_estimate", temporary(parameter, "var_estimate"))
    frame.bind("update", "var_estimate")
    frame.moment(temporary(parameter, "update.norm", ()))


def muon(frame: Frame, parameter: Tensor) -> None:
    """_single_tensor_muon: momentum in the parameter's type, Newton-Schulz iterations in bf16."""
    frame.make("update", temporary(parameter, "nesterov momentum"))
    if parameter.dtype is DType.BF16:
        frame.bind("ortho_grad", "update")
    else:
        frame.make("ortho_grad", _orthogonal(parameter))
    frame.moment(*(temporary(parameter, f"ortho_grad.{name}", (), DType.BF16) for name in ("norm", "norm.clamp")))
    side = Shorter(*sides(parameter))
    for _ in range(NEWTON_SCHULZ_STEPS):
        for name in ("gram_matrix", "gram_update"):
            frame.make(name, temporary(parameter, name, (side, side), DType.BF16))
        frame.make("ortho_grad", _orthogonal(parameter))
    frame.drop("gram_matrix", "gram_update")
    frame.bind("update", "ortho_grad")
    frame.drop("ortho_grad")


def _orthogonal(parameter: Tensor) -> Tensor:
    return temporary(parameter, "ortho_grad", dtype=DType.BF16)


LOOPS: dict[Optimizer, Update] = {
    Optimizer.ADAMW_FOR_LOOP: adam,
    Optimizer.ADAFACTOR: adafactor,
    Optimizer.LION: lion,
    Optimizer.MUON: muon,
}
