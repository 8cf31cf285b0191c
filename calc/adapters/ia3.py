"""IA³ on one linear module: its output, or a feed-forward module's input, times a trained vector
(peft/tuners/ia3/layer.py, Linear.forward)."""

from calc.ledger import Component, Row, Tensor
from calc.operators import Numerics, parameter, stamped
from calc.primitives import cast, frame, like, multiply, scale, wider

from .facts import AdapterFacts
from .freezing import with_tensors
from .modules import LinearModule


def with_ia3(adapted: LinearModule, facts: AdapterFacts, numerics: Numerics) -> list[Row]:
    """The module's rows, with the scaling before or behind them."""
    name, x, before = adapted.name, adapted.x, facts.feeds_forward(adapted.name)
    dims = adapted.product.k if before else adapted.product.n
    # PEFT gives it a side of 1, so that optimizers take it for a matrix.
    shape, num_columns = ((1, *dims), len(dims)) if before else ((*dims, 1), 1)
    types = Numerics(weights=facts.dtype, compute=facts.dtype)
    vector = parameter(f"{name}.ia3_l", shape, types, num_columns)
    scaling = Tensor(f"{name}.ia3_scaling", dims, facts.dtype)
    first = [scale(vector, scaling)]
    if before:
        scaled = like(x, f"{x.name} scaled for {name}")
        typed = like(x, f"{x.name} for {name}.ia3_l", dtype=facts.dtype)
        typed = typed if typed.dtype is not x.dtype else x
        first += [*_in_type(x, typed), *_times(typed, scaling, scaled)]
        base = [with_tensors(row, lambda each: scaled if each == x else each) for row in adapted.rows]
        last = [frame(x, typed, scaling, scaled)]
    else:
        base = adapted.writing(adapted.of_base)
        last = [*_times(adapted.of_base, scaling, adapted.result), frame(adapted.of_base, x, scaling)]
    first, last = (stamped(rows, Component.ADAPTER, name) for rows in (first, last))
    return [*first, *base, *last]


def _in_type(x: Tensor, out: Tensor) -> list[Row]:
    return [] if x is out else [cast(x, out)]


def _times(x: Tensor, scaling: Tensor, out: Tensor) -> list[Row]:
    """The product, in the promoted type, then in that of `out`."""
    product = like(out, f"{out.name} before its cast", dtype=wider(x.dtype, scaling.dtype))
    if product.dtype is out.dtype:
        return [multiply(x, scaling, out)]
    return [multiply(x, scaling, product), cast(product, out)]
