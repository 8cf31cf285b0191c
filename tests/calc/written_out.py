"""Layers in a row as one section, written out layer by layer: what calc adds up from the layers' shares."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from calc.contexts import OWNED
from calc.ledger import Gradient, Region, Row, Section, Tensor
from calc.primitives import frame


def joined(layers: Sequence[Section]) -> Section:
    """Each one's output is the next one's input, and a number tells their tensors apart."""
    rows: list[Row] = []
    x = layers[0].input
    for index, layer in enumerate(layers):
        passed_on = layer.output if layer is layers[-1] and index == len(layers) - 1 else _numbered(layer.output, index)
        name = _Names(layer, index, [(layer.input, x), (layer.output, passed_on)])
        rows += [with_tensors(row, name) for row in layer.rows]
        x = passed_on
    return replace(layers[0], rows=tuple(rows), output=layers[-1].output, region=None)


def group(layers: Sequence[Section]) -> Section:
    """All of them checkpointed as one; who calls them holds their input."""
    whole = joined(layers)
    assert whole.input is not None
    region = Region(start=0, stop=len(whole.rows), arguments=(whole.input, *whole.arguments))
    return replace(whole, rows=(*whole.rows, frame(whole.input)), region=region)


def first_checkpointed(layers: Sequence[Section]) -> Section:
    """The first of them with its region, the others as they are."""
    return replace(joined(layers), region=layers[0].region)


def with_tensors(row: Row, change: Callable[[Tensor], Tensor]) -> Row:
    """`row` with every tensor of it changed."""

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, Gradient):
            return replace(value, **{name: changed(getattr(value, name)) for name in ("of", "needs", "unreduced")})
        return tuple(map(changed, value)) if isinstance(value, tuple) else value

    return replace(row, **{field.name: changed(getattr(row, field.name)) for field in fields(row)})


def _numbered(tensor: Tensor, index: int) -> Tensor:
    return replace(tensor, name=f"{index}.{tensor.name}")


class _Names:
    """What the joined section calls a tensor of one of its layers; what comes from outside keeps its name."""

    def __init__(self, layer: Section, index: int, ends: Iterable[tuple[Tensor | None, Tensor | None]]) -> None:
        made = {tensor for row in layer.rows for tensor in row.writes}
        read = {tensor for row in layer.rows for tensor in row.reads if tensor.kind not in OWNED}
        self.index = index
        self.known = {tensor: tensor for tensor in read - made}
        self.known |= {tensor: name for tensor, name in ends if tensor is not None and name is not None}

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor not in self.known:
            self.known[tensor] = _numbered(tensor, self.index)
        return self.known[tensor]
