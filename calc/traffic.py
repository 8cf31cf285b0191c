"""What each row of the ledger's forward computes, and the bytes it moves to and from the GPU's memory.

An operation reads each tensor once and writes each once: the least it can move, and what the operator suites of
`validation` call `bytes`. So a fused attention kernel moves q, k, v, its output and its statistics; a look-up the rows
it finds; a product of chosen experts the matrices of those that tokens come to. Views move nothing. What an operation
makes for a moment it writes and reads again. Left out: what a kernel reads twice (tiles that the L2 cache no longer
holds), and what a tensor still in that cache spares.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from .blocks.experts import EXPERTS
from .dimensions import WrittenOut
from .dtype import DType
from .flops import FLOPS_PER_PRODUCT, causal_flops
from .generation import of_sequences
from .ledger import Component, Dimension, Kind, Row, Section, Shape, Tensor
from .memory import StepMemory
from .operators import CORE_MODULE
from .outline import Outline
from .sizes import Sizes
from .step import KEPT_STRUCTURES

LOOK_UPS = frozenset({"embedding", "index"})
"""They read as much of their first tensor as they write."""
WRITES_INTO = frozenset({"index_copy_", "index_put_", "copy_"})
"""They write to some places of their first tensor, which is not read."""
FUSED_ATTENTION = "_scaled_dot_product_"
"""The names of the kernels' aten operators begin so."""
QUERY_KEY_VALUE = 3
"""What a kernel reads that gets no mask: it skips the blocks that a causal mask would throw away."""
MULTIPLIED = frozenset({DType.FP32, DType.BF16, DType.FP16, DType.FP8, DType.INT8})


class Holds(StrEnum):
    """What moved bytes are of."""

    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"
    ACTIVATIONS = "activations"


HOLDS = {Kind.PARAMETERS: Holds.WEIGHTS, Kind.BUFFERS: Holds.WEIGHTS, Kind.KV_CACHE: Holds.KV_CACHE}
"""By the kind of a tensor; others are activations."""


class Operation(StrEnum):
    """What a row is part of, as a person tells them apart."""

    EMBEDDING = "embedding"
    NORM = "norm"
    PROJECTIONS = "projections"
    POSITIONS = "positions"
    CACHE_UPDATE = "cache_update"
    ATTENTION_CORE = "attention_core"
    MLP = "mlp"
    RESIDUAL = "residual"
    HEAD = "head"


OPERATIONS = {
    Component.EMBEDDING: Operation.EMBEDDING,
    Component.NORM: Operation.NORM,
    Component.MLP: Operation.MLP,
    Component.HEAD: Operation.HEAD,
}


class Moved(NamedTuple):
    """One tensor that is read or written."""

    holds: Holds
    shapes: tuple[Shape, ...]
    """Its own, and those of the tensors it is a view of: an expanded view moves no more than what it expands."""
    dtype: DType
    times: int = 1
    of_experts: bool = False
    """The weights of all experts, of which those are read that a token is sent to."""

    def nbytes(self, sizes: Sizes) -> int:
        whole = self.whole_nbytes(sizes)
        return round(whole * used_experts(sizes) / sizes["X"]) if self.of_experts else whole

    def whole_nbytes(self, sizes: Sizes) -> int:
        """With the experts that no token is sent to."""
        return self.times * self.dtype.nbytes(min([sizes[shape] for shape in self.shapes]))


class Work(NamedTuple):
    """What one row does, whatever the sizes."""

    operation: Operation
    name: str
    module: str
    dtype: DType
    """Of the first numbers it reads: that of its products."""
    products: tuple[Shape, ...]
    causal: tuple[Dimension, Dimension] | None
    """Of a fused kernel that leaves out what a causal mask throws away: its queries and keys."""
    moved: tuple[Moved, ...]

    def flops(self, sizes: Sizes) -> int:
        """Of its products, all pairs of tokens as torch.utils.flop_counter counts."""
        return FLOPS_PER_PRODUCT * sum([sizes[shape] for shape in self.products])

    def bytes_moved(self, sizes: Sizes) -> dict[Holds, int]:
        found = dict.fromkeys(Holds, 0)
        for each in self.moved:
            found[each.holds] += each.nbytes(sizes)
        return found


class Done(NamedTuple):
    """Work with its sizes put in."""

    work: Work
    times: int
    """How often one pass does it; the numbers are of one time."""
    flops: int
    """Of its products, all pairs of tokens as torch.utils.flop_counter counts."""
    done_flops: int
    """Without those that a causal kernel skips."""
    bytes_moved: dict[Holds, int]
    sizes: Sizes


def used_experts(sizes: Sizes) -> float:
    """The experts that some token is sent to, on average where each token chooses evenly and by itself:
    X·(1 - (1 - Y/X)^tokens)."""
    num_experts, tokens = sizes["X"], sizes["B"] * sizes["S"]
    return num_experts * (1 - (1 - sizes["Y"] / num_experts) ** tokens)


def forward_work(memory: StepMemory) -> list[Done]:
    """What one forward pass does: each different work, and how often."""
    return [_done(work, memory.sizes[group], times) for work, group, times in different_work(memory.outline)]


def decoding_work(memory: StepMemory) -> list[Done]:
    """What a pass that adds a token does; with beams each copies the cache of the one it goes on from before."""
    done = forward_work(memory)
    for place in memory.layers if memory.plan.num_beams else ():
        for tensor in of_sequences(place.part.section):
            moved = (_tensor(tensor, {})._replace(times=2),)
            work = Work(Operation.CACHE_UPDATE, "index_select", "", tensor.dtype, (), None, moved)
            done.append(_done(work, memory.sizes[place.group], place.count * place.part.num_layers))
    return done


def _done(work: Work, sizes: Sizes, times: int) -> Done:
    flops = done_flops = work.flops(sizes) if work.products else 0
    if work.causal is not None:
        queries, keys = (sizes[dimension] for dimension in work.causal)
        done_flops = causal_flops(flops, queries, keys - queries)
    return Done(work, times, flops, done_flops, work.bytes_moved(sizes), sizes)


@lru_cache(maxsize=KEPT_STRUCTURES)
def different_work(step: Outline) -> tuple[tuple[Work, int, int], ...]:
    """Each different work of a forward pass, which of the step's sizes it has, and how often it is done."""
    found: Counter[tuple[Work, int]] = Counter()
    for place in step.places:
        for piece, times in place.part.pieces:
            for work in section_work(piece.section):
                found[work, place.group] += times * place.count
    return tuple((work, group, times) for (work, group), times in found.items())


def section_work(section: Section) -> Iterator[Work]:
    """What the rows of `section` do; those that only name a view, or return from a function, do nothing."""
    bases: dict[Tensor, Tensor] = {}
    for row in section.rows:
        if row.is_view:
            bases.update(dict.fromkeys(row.writes, row.reads[0]))
        if row.writes and (row.elementwise_flops or not row.is_view):
            yield _work(row, bases)


def _work(row: Row, bases: Mapping[Tensor, Tensor]) -> Work:
    fused = row.operator.startswith(FUSED_ATTENTION)
    skips = fused and len(row.reads) == QUERY_KEY_VALUE and row.products[0].causal
    return Work(
        operation=_operation(row),
        name=row.name,
        module=row.module,
        dtype=next((each.dtype for each in (*row.reads, *row.writes) if each.dtype in MULTIPLIED), DType.FP32),
        products=tuple(product.shape for product in row.products),
        causal=(row.products[0].m[0], row.products[0].n[0]) if skips else None,
        moved=tuple(_moved(row, bases)),
    )


def _operation(row: Row) -> Operation:
    if row.component is not Component.ATTENTION:
        return OPERATIONS.get(row.component, Operation.RESIDUAL)
    if row.module == CORE_MODULE:
        return Operation.ATTENTION_CORE
    if any(tensor.kind is Kind.KV_CACHE for tensor in row.writes):
        return Operation.CACHE_UPDATE
    return Operation.PROJECTIONS if row.products else Operation.POSITIONS


def _moved(row: Row, bases: Mapping[Tensor, Tensor]) -> list[Moved]:
    reads = [_tensor(tensor, bases) for tensor in row.reads]
    if row.name in LOOK_UPS:
        found, *others = reads
        reads = [found._replace(shapes=(row.writes[0].shape,), of_experts=False), *others]
    elif row.name in WRITES_INTO and row.in_place:
        reads = reads[1:]
    writes = [_tensor(tensor, bases) for tensor in row.writes]
    return [*reads, *writes, *(_for_a_moment(tensor, bases) for tensor in row.temporaries)]


def _for_a_moment(tensor: Tensor, bases: Mapping[Tensor, Tensor]) -> Moved:
    moved = _tensor(tensor, bases)._replace(times=2)
    is_weight = any(isinstance(dimension, WrittenOut) for dimension in tensor.shape)
    return moved._replace(holds=Holds.WEIGHTS) if is_weight else moved


def _tensor(tensor: Tensor, bases: Mapping[Tensor, Tensor]) -> Moved:
    chain = [tensor]
    while chain[-1] in bases:
        chain.append(bases[chain[-1]])
    owner = chain[-1]
    return Moved(
        holds=HOLDS.get(owner.kind, Holds.ACTIVATIONS),
        shapes=tuple(dict.fromkeys(each.shape for each in chain)),
        dtype=tensor.dtype,
        of_experts=HOLDS.get(owner.kind) is Holds.WEIGHTS and EXPERTS in owner.name and owner.shape[0] == "X",
    )
