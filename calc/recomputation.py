"""Recomputation as a transformation of the ledger: which rows of a layer, or of several in a row, are checkpointed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from .ledger import Region, Row, Section
from .operators import CORE_MODULE, POSITION_IDS
from .plan import Plan
from .primitives import frame
from .scenario import Recompute, SavedOperator
from .sdpa import IN_PLACE_ADDITION

Repeated = tuple[Section, int]
"""A section, and how many times it follows itself."""
LAYER_BY_LAYER = frozenset({Recompute.FULL, Recompute.OPERATORS})
"""What transformers' own checkpointing of layers does."""
KEPT_SECTIONS = 512
"""How many layers with their regions are kept; their lifetimes are kept by them."""


def full(section: Section, *, offloaded: bool = False, has_begun: bool = False, goes_on: bool = False) -> Section:
    """torch.utils.checkpoint(layer, use_reentrant=False): only the layer's input is kept."""
    x = () if section.input is None else (section.input,)
    region = Region(
        start=0,
        stop=len(section.rows),
        arguments=(*x, *section.arguments),
        offloaded=offloaded,
        has_begun=has_begun,
        goes_on=goes_on,
    )
    return replace(section, region=region)


def selective(section: Section) -> Section:
    """A checkpoint around the attention core: q, k and v are kept, nothing between them and the output (Korthikanti
    et al. 2022, section 5)."""
    core = [index for index, row in enumerate(section.rows) if row.module.split(".")[-1] == CORE_MODULE]
    rows = section.rows[core[0] : core[-1] + 1]
    made = {tensor for row in rows for tensor in row.writes}
    arguments = {tensor for row in rows for tensor in row.reads if tensor.name != POSITION_IDS.name} - made
    return replace(section, region=Region(start=core[0], stop=core[-1] + 1, arguments=tuple(arguments)))


def but_operators(section: Section, operators: frozenset[SavedOperator]) -> Section:
    """The same with create_selective_checkpoint_contexts(operators): all that those operators give is kept, by the
    first run's dispatch mode for the second's, needed or not. What they alone read is computed again nevertheless."""
    rows = tuple(map(_under_dispatch_mode, section.rows))
    stored = frozenset(tensor for row in rows if row.operator in operators for tensor in row.writes)
    section = full(replace(section, rows=rows))
    assert section.region is not None
    return replace(section, region=replace(section.region, stored=stored))


def _under_dispatch_mode(row: Row) -> Row:
    """_scaled_dot_product_attention_math adds its mask in place only where no dispatch mode sees it (attention.cpp,
    areAnyTensorSubclassLike)."""
    return replace(row, name="add", is_view=False) if row.name == IN_PLACE_ADDITION else row


@lru_cache(maxsize=KEPT_SECTIONS)
def checkpointed(
    section: Section, recompute: Recompute, saved_operators: frozenset[SavedOperator], *, offloaded: bool
) -> Section:
    """One layer with what is recomputed of it."""
    match recompute:
        case Recompute.NONE:
            return section
        case Recompute.FULL:
            return full(section, offloaded=offloaded)
        case Recompute.SELECTIVE:
            return selective(section)
        case Recompute.OPERATORS:
            return but_operators(section, saved_operators)


@lru_cache(maxsize=KEPT_SECTIONS)
def share_of_group(section: Section, *, has_begun: bool, goes_on: bool) -> Section:
    """One layer of a group that is one checkpointed region."""
    group = full(section, has_begun=has_begun, goes_on=goes_on)
    if section.input is None or has_begun or goes_on:
        return group
    return replace(group, rows=(*group.rows, frame(section.input)))  # held by who calls the group


def layers_in_a_row(plan: Plan) -> int:
    """How many layers repeat as one."""
    return max(plan.recompute_interval, plan.recompute_group_size)


def makes_leaves(plan: Plan) -> bool:
    """transformers' own checkpointing of layers makes frozen embeddings' output require a gradient."""
    return plan.recompute in LAYER_BY_LAYER and plan.recompute_group_size == 1


def recomputed(layers: Sequence[Repeated], plan: Plan) -> list[Repeated]:
    """Layers in a row with what is recomputed of them: together one region, or the first of them."""
    alone = list(_alone(layers))
    if plan.recompute_group_size > 1:
        return list(_group(alone))
    (first, _), *others = alone
    kept, offloaded = plan.recompute_saved_operators, plan.recompute_offload
    return [(checkpointed(first, plan.recompute, kept, offloaded=offloaded), 1), *others]


def _alone(layers: Sequence[Repeated]) -> Iterator[Repeated]:
    """Of equal layers in a row the first two and the last are apart: the first may get no gradient for its input, the
    second is the first whose input needs one, the last may end a region."""
    for section, times in layers:
        counts = (1, 1, times - 3, 1) if times > 3 else (1,) * times
        yield from ((section, count) for count in counts)


def _group(layers: Sequence[Repeated]) -> Iterator[Repeated]:
    last = len(layers) - 1
    for index, (section, times) in enumerate(layers):
        yield share_of_group(section, has_begun=index > 0, goes_on=index < last), times
