"""Recomputation as a transformation of the ledger: which rows of a layer are checkpointed."""

from collections.abc import Callable
from dataclasses import replace

from .ledger import Region, Section
from .scenario import Recompute

CORE_MODULE = "core"
"""What the rows from q, k, v to the attention output are stamped with."""


def unchanged(section: Section) -> Section:
    """Nothing is recomputed."""
    return section


def full(section: Section) -> Section:
    """torch.utils.checkpoint(layer, use_reentrant=False): only the layer's input is kept."""
    return replace(section, regions=(Region(start=0, stop=len(section.rows), arguments=section.arguments),))


def selective(section: Section) -> Section:
    """A checkpoint around the attention core: q, k and v are kept, nothing between them and the output (Korthikanti et al. 2022, section 5)."""
    core = [index for index, row in enumerate(section.rows) if row.module.split(".")[-1] == CORE_MODULE]
    rows = section.rows[core[0] : core[-1] + 1]
    masks = tuple(tensor for row in rows if row.name == "mask" for tensor in row.reads)
    return replace(section, regions=(Region(start=core[0], stop=core[-1] + 1, arguments=masks),))


RECOMPUTATIONS: dict[Recompute, Callable[[Section], Section]] = {
    Recompute.NONE: unchanged,
    Recompute.FULL: full,
    Recompute.SELECTIVE: selective,
}
