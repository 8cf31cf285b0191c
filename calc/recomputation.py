"""Recomputation as a transformation of the ledger: which rows of a layer, or of several in a row, are checkpointed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from .ledger import Region, Row, Section, Tensor, with_tensors
from .lifetimes import OWNED
from .operators import CORE_MODULE, POSITION_IDS
from .plan import Plan
from .primitives import frame
from .scenario import Recompute


def unchanged(section: Section) -> Section:
    """Nothing is recomputed."""
    return section


def full(section: Section) -> Section:
    """torch.utils.checkpoint(layer, use_reentrant=False): only the layer's input is kept."""
    x = () if section.input is None else (section.input,)
    return replace(section, regions=(Region(start=0, stop=len(section.rows), arguments=(*x, *section.arguments)),))


def selective(section: Section) -> Section:
    """A checkpoint around the attention core: q, k and v are kept, nothing between them and the output (Korthikanti
    et al. 2022, section 5)."""
    core = [index for index, row in enumerate(section.rows) if row.module.split(".")[-1] == CORE_MODULE]
    rows = section.rows[core[0] : core[-1] + 1]
    made = {tensor for row in rows for tensor in row.writes}
    arguments = {tensor for row in rows for tensor in row.reads if tensor.name != POSITION_IDS.name} - made
    return replace(section, regions=(Region(start=core[0], stop=core[-1] + 1, arguments=tuple(arguments)),))


RECOMPUTATIONS: dict[Recompute, Callable[[Section], Section]] = {
    Recompute.NONE: unchanged,
    Recompute.FULL: full,
    Recompute.SELECTIVE: selective,
}


def layers_in_a_row(plan: Plan) -> int:
    """How many layers repeat as one."""
    return max(plan.recompute_interval, plan.recompute_group_size)


def makes_leaves(plan: Plan) -> bool:
    """transformers' own checkpointing of layers makes frozen embeddings' output require a gradient."""
    return plan.recompute is Recompute.FULL and plan.recompute_group_size == 1


def recomputed(layers: Sequence[Section], plan: Plan) -> Section:
    """Layers in a row as one section: together one region, or the first of them with what is recomputed of it."""
    recompute = RECOMPUTATIONS[plan.recompute]
    if plan.recompute_group_size > 1:
        group = recompute(joined(layers))
        held = () if group.input is None else (frame(group.input),)  # by who calls the group
        return replace(group, rows=(*group.rows, *held))
    first, *others = layers
    first = recompute(first)
    if plan.recompute_offload:
        first = replace(first, regions=tuple(replace(region, offloaded=True) for region in first.regions))
    return joined([first, *others])


def joined(layers: Sequence[Section]) -> Section:
    """Layers in a row as one section: each one's output is the next one's input, and a number tells their tensors
    apart."""
    first, *others = layers
    if not others:
        return first
    rows: list[Row] = []
    regions: list[Region] = []
    x = first.input
    for index, layer in enumerate(layers):
        passed_on = layer.output if index == len(others) else _numbered(layer.output, index)
        name = _Names(layer, index, [(layer.input, x), (layer.output, passed_on)])
        regions += [_moved(region, len(rows), name) for region in layer.regions]
        rows += [with_tensors(row, name) for row in layer.rows]
        x = passed_on
    modules = tuple(f"{index}.{module}" for index, layer in enumerate(layers) for module in layer.modules)
    return replace(
        first,
        rows=tuple(rows),
        output=others[-1].output,
        regions=tuple(regions),
        modules=modules,
        num_layers=len(layers),
    )


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


def _moved(region: Region, num_rows: int, name: Callable[[Tensor], Tensor]) -> Region:
    arguments = tuple(map(name, region.arguments))
    return replace(region, start=num_rows + region.start, stop=num_rows + region.stop, arguments=arguments)
