"""Frozen weights, and the trained copies of whole modules beside them (peft/utils/other.py, ModulesToSaveWrapper)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from calc.ledger import Component, Kind, Row, Section, Tensor
from calc.operators import CAST

COPY = "modules_to_save"
"""What PEFT puts between a module's name and the copy's weights."""


def module_of(tensor: Tensor, row: Row) -> str:
    """The module a parameter that `row` reads belongs to; the head's, where the embedding's weight is its own."""
    if tensor.kind is not Kind.PARAMETERS:
        return ""
    return row.module if row.component is Component.HEAD else tensor.name.rpartition(".")[0]


def frozen(rows: Iterable[Row], is_saved: Callable[[str], bool]) -> Iterator[Row]:
    """`rows` with no weight trained but the copies of the saved modules, whose originals stay, unused.

    Autocast caches only casts of trained weights, so those of frozen ones are ordinary tensors.
    """
    copied: set[Tensor] = set()
    for row in rows:
        originals = [t for t in row.reads if is_saved(module_of(t, row))]
        if not copied.issuperset(originals):
            copied.update(originals)
            kept = tuple(replace(tensor, trainable=False) for tensor in originals)
            yield Row(name="original", reads=kept, component=row.component, module=row.module)
        yield with_tensors(row, _in_training(is_saved, row))


def frozen_section(section: Section) -> Section:
    """`section` with no weight trained."""
    return replace(section, rows=tuple(frozen(section.rows, lambda _: False)))


def with_frozen(section: Section, parameters: Iterable[tuple[Tensor, Component]]) -> Section:
    """`section` with those weights not trained that `parameters` hold too: tied ones."""
    names = {tensor.name for tensor, _ in parameters}

    def changed(tensor: Tensor) -> Tensor:
        if tensor.name in names:
            return replace(tensor, trainable=False)
        if tensor.kind is Kind.AUTOCAST_WEIGHTS and tensor.name.removesuffix(CAST) in names:
            return replace(tensor, kind=Kind.ACTIVATIONS)
        return tensor

    return replace(section, rows=tuple(with_tensors(row, changed) for row in section.rows))


def _in_training(is_saved: Callable[[str], bool], row: Row) -> Callable[[Tensor], Tensor]:
    def changed(tensor: Tensor) -> Tensor:
        if tensor.kind is Kind.PARAMETERS:
            module = module_of(tensor, row)
            if is_saved(module):
                return replace(tensor, name=f"{module}.{COPY}.{tensor.name.rpartition('.')[2]}")
            return replace(tensor, trainable=False)
        if tensor.kind is Kind.AUTOCAST_WEIGHTS and not is_saved(row.module):
            return replace(tensor, kind=Kind.ACTIVATIONS)
        return tensor

    return changed


def with_tensors(row: Row, changed: Callable[[Tensor], Tensor]) -> Row:
    """`row` with each tensor it names replaced by what `changed` says."""

    def all_of(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(map(changed, tensors))

    return replace(
        row,
        reads=all_of(row.reads),
        writes=all_of(row.writes),
        saves=all_of(row.saves),
        gradients=tuple(
            replace(gradient, of=changed(gradient.of), needs=all_of(gradient.needs)) for gradient in row.gradients
        ),
    )
