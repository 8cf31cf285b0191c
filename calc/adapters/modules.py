"""A linear module of the ledger, as an adapter finds it."""

from dataclasses import replace
from typing import NamedTuple

from calc.ledger import Product, Row, Tensor

from .freezing import module_of


def is_linear(row: Row) -> bool:
    return row.name == "linear"


class LinearModule(NamedTuple):
    """Its rows and the tensors they go around."""

    name: str
    rows: tuple[Row, ...]
    x: Tensor
    """Its input, before autocast."""
    result: Tensor
    weight: Tensor
    bias: Tensor | None
    product: Product

    def writing(self, of_base: Tensor) -> list[Row]:
        """Its rows with another output, so that the adapter's can be the result."""
        return [replace(row, writes=(of_base,)) if is_linear(row) else row for row in self.rows]

    @property
    def of_base(self) -> Tensor:
        """The output of the module alone."""
        return replace(self.result, name=f"{self.result.name} of the base")


def linear_module(rows: list[Row]) -> LinearModule:
    """The module that `rows` are; one of them is the product."""
    base = next(row for row in rows if is_linear(row))
    owned = {tensor.name.rpartition(".")[2]: tensor for row in rows for tensor in row.reads if module_of(tensor, row)}
    return LinearModule(
        name=base.module,
        rows=tuple(rows),
        x=next((row.reads[0] for row in rows if base.reads[0] in row.writes), base.reads[0]),
        result=next((row.writes[0] for row in rows if base.writes[0] in row.reads and row.writes), base.writes[0]),
        weight=owned["weight"],
        bias=owned.get("bias"),
        product=base.products[0],
    )
