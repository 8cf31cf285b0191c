"""The same rows with other tensors in them."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from .ledger import Kind, Product, Row, Section, Tensor


def unchanged(product: Product) -> Product:
    return product


def with_other_tensors(
    row: Row, changed: Callable[[Tensor], Tensor], product: Callable[[Product], Product] = unchanged
) -> Row:
    """`row` with what `changed` makes of each of its tensors, and `product` of each of its products."""

    def tensors(given: Iterable[Tensor]) -> tuple[Tensor, ...]:
        return tuple(map(changed, given))

    def products(given: Iterable[Product]) -> tuple[Product, ...]:
        return tuple(map(product, given))

    return replace(
        row,
        reads=tensors(row.reads),
        writes=tensors(row.writes),
        gradients=tuple(
            replace(
                each,
                of=changed(each.of),
                needs=tensors(each.needs),
                products=products(each.products),
                unreduced=each.unreduced and changed(each.unreduced),
            )
            for each in row.gradients
        ),
        saves=tensors(row.saves),
        holds=tensors(row.holds),
        products=products(row.products),
        temporaries=tensors(row.temporaries),
        backward_prelude=tensors(row.backward_prelude),
        backward_temporaries=tensors(row.backward_temporaries),
        backward_products=products(row.backward_products),
        backward_rerun=products(row.backward_rerun),
        graph=tensors(row.graph),
    )


def prefixed(rows: Iterable[Row], prefix: str, also: Iterable[Tensor]) -> tuple[list[Row], tuple[Tensor, ...]]:
    """`rows` with `prefix` before the names of what they write, and of those tensors `also` that are among it."""
    rows, also = list(rows), tuple(also)
    if not prefix:
        return rows, also
    written = {tensor for row in rows for tensor in row.writes}

    def changed(tensor: Tensor) -> Tensor:
        if tensor not in written or tensor.name.startswith(prefix):
            return tensor
        return replace(tensor, name=f"{prefix}{tensor.name}")

    return [with_other_tensors(row, changed) for row in rows], tuple(map(changed, also))


def each_written_once(section: Section) -> Section:
    """`section`, of which some modules run twice: what their second run writes gets other names, but the casts of their
    weights it finds in autocast's cache."""
    written: set[Tensor] = set()
    names: dict[Tensor, Tensor] = {}
    rows: list[Row] = []
    for row in section.rows:
        again = written.intersection(row.writes)
        if any(tensor.kind is Kind.AUTOCAST_WEIGHTS for tensor in again):
            continue
        names.update((tensor, replace(tensor, name=f"{tensor.name}, again")) for tensor in again)
        written.update(row.writes)
        rows.append(with_other_tensors(row, lambda tensor: names.get(tensor, tensor)))
    return replace(section, rows=tuple(rows))
