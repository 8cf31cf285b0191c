"""Recomputation as a transformation of the ledger: which rows of a layer are checkpointed."""

from collections.abc import Callable
from dataclasses import replace

from .ledger import Region, Section
from .operators import CORE_MODULE, POSITION_IDS
from .scenario import Recompute


def unchanged(section: Section) -> Section:
    """Nothing is recomputed."""
    return section


def full(section: Section) -> Section:
    """torch.utils.checkpoint(layer, use_reentrant=False): only the layer's input is kept."""
    return replace(section, regions=(Region(start=0, stop=len(section.rows), arguments=section.arguments),))


def selective(section: Section) -> Section:
    """A checkpoint around the attention core: q, k and v are kept, nothing between them and the output (Korthikanti
    et al. 2022, section 5)."""
    core = [index for index, row in enumerate(section.rows) if row.module.split(".")[-1] == CORE_MODULE]
    rows = section.rows[core[0] : core[-1] + 1]
    made = {tensor for row in rows for tensor in row.writes}
    arguments = {tensor for row in rows for tensor in row.reads if tensor is not POSITION_IDS} - made
    return replace(section, regions=(Region(start=core[0], stop=core[-1] + 1, arguments=tuple(arguments)),))


RECOMPUTATIONS: dict[Recompute, Callable[[Section], Section]] = {
    Recompute.NONE: unchanged,
    Recompute.FULL: full,
    Recompute.SELECTIVE: selective,
}
