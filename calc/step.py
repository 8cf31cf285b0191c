"""One training step of a model: its sections, their events, and how they follow each other.

What a step's ledger looks like depends on facts (kinds, types, choices), not on sizes; so it is built once for each
set of facts and kept.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from .adapters.facts import REGULARISATION, AdapterFacts, check_modules
from .adapters.freezing import frozen_section, with_frozen
from .blocks.facts import LayerFacts, ModelFacts
from .evaluation import Batches, batches, without_gradients
from .grad_scaler import HELD, uses_grad_scaler
from .gradients import gradient_of
from .kinds import RelativePositions, Wiring
from .ledger import Component, Kind, Row, Section, Tensor
from .lifetimes import NEXT, CacheEnd, Context, Event
from .operators import Numerics
from .optimizer_step import OptimizerStep, optimizer_step
from .optimizer_step import Part as TrainedPart
from .optimizers import QUANTISATION_MAPS, averaged, kept_between_steps
from .parts import Owned, Part, Piece, Pieces, part, piece
from .plan import BITSANDBYTES, Plan
from .recomputation import recomputed
from .renaming import each_written_once
from .router_loss import COUNTS, around_router_loss, logits_of, share_of_router_loss
from .scenario import AdapterKind, Recompute, Task
from .sharing import Unit, contexts_of, logits_of_head, logits_of_outputs, trained_in
from .sizes import StorageClass, storage_class
from .timeline import Program
from .wirings import parts_of

KEPT_STRUCTURES = 256
"""How many sets of facts are kept built."""


class StepFacts(NamedTuple):
    """All that a step's ledger depends on beside sizes."""

    model: ModelFacts
    layers: tuple[tuple[tuple[LayerFacts, int], ...], ...]
    """Per part of layers, how many of each kind follow each other in it."""
    plan: Plan
    """Without the adapter, whose facts stand apart from its sizes."""
    adapter: AdapterFacts | None


Around = tuple[Program, Program, Program, Program]
"""Before and after something in forward, and before and after it in backward."""


@dataclass(frozen=True, eq=False)
class Step:
    """The parts of a step in the order of forward: embedding, layers, head."""

    wiring: Wiring
    plan: Plan
    """Without what only sizes depend on."""
    parts: tuple[Part, ...]
    output: Tensor
    """Of the last part: the loss, or in generation the logits."""
    cache_end: CacheEnd
    between: Program
    """After forward: the scaled loss is made, the outputs are dropped."""
    regularisation: Around | None
    """What is around the parts' regularisation; None where nothing is added to the loss for weights."""
    begin: Program
    """The backward pass gets its first gradient."""
    finish: Program
    """After backward: the scaled loss and its gradient are dropped."""
    optimizer: OptimizerStep
    batches: Batches | None
    """Of an evaluation: what is around its forward passes."""
    saved_by_several: tuple[StorageClass, ...]
    """What saved-tensor hooks see once, though several parts keep it and none of them alone makes it its own."""
    buffers: tuple[Tensor, ...]
    """What lives between steps and belongs to no part."""

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the model is given."""
        reads = (tensor for row in self._rows() for tensor in row.reads if tensor.kind is Kind.INPUTS)
        return tuple(dict.fromkeys(reads))

    def _rows(self) -> Iterator[Row]:
        sections = dict.fromkeys(each.section for part in self.parts for each, _ in part.pieces)
        return (row for section in sections for row in section.rows)

    @cached_property
    def origins(self) -> dict[str, str]:
        """What makes each tensor, by its name: the operation and its module."""
        origins: dict[str, str] = {}
        for row in self._rows():
            place = f"{row.module}: {row.name}" if row.module else row.name
            in_backward = (tensor for each in row.backward_rows for tensor in (*each.writes, *each.temporaries))
            for tensor in (*row.writes, *row.temporaries, *row.backward_temporaries, *in_backward):
                origins.setdefault(tensor.name.removeprefix(NEXT), place)
        return origins


@lru_cache(maxsize=KEPT_STRUCTURES)
def step(facts: StepFacts) -> Step:
    """The step that `facts` describe."""
    units = _units(facts)
    contexts = contexts_of(units, _places(facts), facts.model, facts.plan)
    of_outputs = _held_by_outputs(units, contexts)
    contexts = iter(contexts)
    placed: list[Pieces] = [
        tuple((piece(section, _meeting(section, next(contexts), facts)), times) for section, times in unit)
        for unit in units
    ]
    parts = tuple(_parts(placed, facts))
    pieces = list(dict.fromkeys(each for unit in placed for each, _ in unit))
    between, begin, finish = _around_backward(pieces[-1].section, of_outputs, facts)
    outside = frozenset[Tensor]().union(*(each.life.saved_from_outside for each in pieces))
    shared = outside.difference(*(each.life.saved for each in pieces)) if outside else outside
    return Step(
        wiring=facts.model.kind.wiring,
        plan=facts.plan,
        parts=parts,
        output=pieces[-1].section.output,
        cache_end=facts.model.cache_end,
        between=between,
        begin=begin,
        regularisation=_around_regularisation(facts, pieces),
        finish=finish,
        optimizer=optimizer_step(
            as_registered(parts), tuple(part.in_layer for part in parts), _not_recomputed(facts.plan)
        ),
        batches=_batches(pieces[-1].section, facts.plan) if facts.plan.task is Task.EVALUATION else None,
        saved_by_several=tuple(map(storage_class, shared)),
        buffers=tuple(_buffers(facts)),
    )


def as_registered(parts: tuple[Part, ...]) -> tuple[TrainedPart, ...]:
    """The trained parameters part by part, as `model.parameters()` has them: some of those around layers stand on the
    layers' other side."""
    trained: list[TrainedPart] = [tuple((each.trained, times) for each, times in part.owned) for part in parts]
    ends = [index for index, part in enumerate(parts) if not part.in_layer]
    for index, behind in pairwise(ends):
        _move(parts[index], trained, index, behind)
    _move(parts[ends[-1]], trained, ends[-1], ends[-2])
    return tuple(trained)


def _move(part: Part, trained: list[TrainedPart], index: int, other: int) -> None:
    """What of the part at `index` is registered beyond the layers goes to the part at the `other` end of them."""
    beyond = part.section.beyond_layers
    moved = [tensor for tensor in part.trained if tensor.name.rpartition(".")[0] in beyond]
    if moved:
        stays = (
            (tuple(tensor for tensor in tensors if tensor not in moved), times) for tensors, times in trained[index]
        )
        goes = (tuple(moved), 1)
        trained[index] = tuple(stays)
        trained[other] = (goes, *trained[other]) if other > index else (*trained[other], goes)


def _buffers(facts: StepFacts) -> Iterator[Tensor]:
    buffers = tuple(parts_of(facts.model.kind.wiring).buffers(facts.model))
    yield from buffers
    if facts.plan.weight_ema:
        yield from map(averaged, buffers)
    if uses_grad_scaler(facts.plan):
        yield from HELD
    if facts.plan.optimizer in BITSANDBYTES:
        yield from QUANTISATION_MAPS


def _is_regularised(facts: StepFacts) -> bool:
    return facts.adapter is not None and facts.adapter.kind is AdapterKind.ADALORA


@lru_cache(maxsize=KEPT_STRUCTURES)
def _regularisation(section: Section, numerics: Numerics) -> Section | None:
    from .adapters.adalora import regularisation  # which alone has one

    return regularisation(section, numerics)


def _regularised(section: Section, facts: StepFacts) -> Section | None:
    return _regularisation(section, facts.plan.numerics) if _is_regularised(facts) else None


def _meeting(section: Section, context: Context, facts: StepFacts) -> Context:
    """`context` with where gradients go: those of the regularisation wait for those of `section`."""
    if facts.plan.accumulate_grads_in_fp32:
        return replace(context, sums_in_fp32=True)
    regularised = _regularised(section, facts)
    return replace(context, meeting=context.meeting | trained_in(regularised)) if regularised else context


def _regularisations(pieces: Pieces, facts: StepFacts) -> Iterator[tuple[Piece, int]]:
    if facts.model.router_loss:
        yield from _of_routers(pieces, facts)
    for each, times in pieces:
        section = _regularised(each.section, facts)
        if section is not None:
            yield piece(section, Context(input_required=True, waiting=trained_in(section))), times


def _of_routers(pieces: Pieces, facts: StepFacts) -> Iterator[tuple[Piece, int]]:
    for each, times in pieces:
        section = share_of_router_loss(each.section, facts.plan.numerics)
        if section is not None:
            recorded = logits_of(each.section)
            if not (recorded & each.life.required if recorded else each.context.input_required):
                section = without_gradients(section)
            context = Context(
                input_required=True,
                exported=recorded,
                released=frozenset({COUNTS}),
                cache_end=facts.model.cache_end,
            )
            yield piece(section, context), times


def _around_regularisation(facts: StepFacts, pieces: list[Piece]) -> Around | None:
    if facts.model.router_loss:
        sections, differentiated = (each.section for each in pieces), pieces[-1].context.input_required
        return around_router_loss(sections, facts.plan.numerics, differentiated=differentiated)
    return _around_norms() if _is_regularised(facts) else None


def _around_norms() -> Around:
    """The sum, its mean and that times its weight (AdaLoraModel.forward); their gradients."""
    total = REGULARISATION
    mean, weighted, gradient = replace(total, name="mean"), replace(total, name="weighted"), gradient_of(total)
    end: list[Event] = [(mean, True), (total, False), (weighted, True), (weighted, False), (mean, False)]
    begin: list[Event] = [(gradient_of(mean), True), (gradient, True), (gradient_of(mean), False)]
    return Program([(total, True)]), Program(end), Program(begin), Program([(gradient, False)])


def _held_by_outputs(units: list[Unit], contexts: list[Context]) -> frozenset[Tensor]:
    """The encoder's output, where no node keeps it longer than the outputs do."""
    bridges = (section for unit in units for section, _ in unit if section.is_bridge)
    freed = (context.freed_in_backward for context in contexts)
    return frozenset(tensor for section in bridges for tensor in section.offered).difference(*freed)


def _around_backward(
    last: Section, of_outputs: frozenset[Tensor], facts: StepFacts
) -> tuple[Program, Program, Program]:
    """Before backward: `loss / k`, `del outputs`; then the scaling, the first gradients. After it: the scalars go, and
    the outputs where they are held, `of_outputs` among them."""
    loss = last.output
    names = ("loss / k", *(("loss · scale",) if uses_grad_scaler(facts.plan) else ()), "∂loss / k")
    scalars = [replace(loss, name=name) for name in names]
    dropped: list[Event] = [(tensor, False) for tensor in (loss, *logits_of_outputs(last, facts.plan), *of_outputs)]
    made: list[Event] = [(scalar, True) for scalar in (*scalars, gradient_of(loss))]
    gone: list[Event] = [(scalar, False) for scalar in scalars]
    if facts.plan.hold_outputs:
        return Program(made[:1]), Program(made[1:]), Program([*gone, *dropped])
    return Program([made[0], *dropped]), Program(made[1:]), Program(gone)


def _batches(last: Section, plan: Plan) -> Batches:
    [logits] = logits_of_head(last)
    return batches(logits, last.output, plan.eval_accumulation_steps)


def _units(facts: StepFacts) -> list[Unit]:
    numerics = facts.plan.numerics
    if facts.adapter is not None and facts.adapter.keeps_types:
        numerics = replace(numerics, outputs=numerics.weights)
    of_layers = replace(numerics, float8=facts.plan.float8_recipe is not None)
    layers = {layer: _layer(layer, of_layers) for unit in facts.layers for layer, _ in unit}
    stacks = _stacks(facts)
    ends = _ends(facts.model, numerics, facts.plan.numerics, tuple(_outside(stack, layers) for stack in stacks))
    if facts.adapter is not None:
        check_modules([*ends, *layers.values()], facts.adapter)
        without = facts.adapter.without_targets
        of_ends = without if facts.adapter.some_layers else facts.adapter
        ends = tuple(_adapted(section, of_ends, facts.plan.numerics) for section in ends)
        layers = {
            layer: _adapted(section, without if layer.frozen else facts.adapter, facts.plan.numerics)
            for layer, section in layers.items()
        }
    if facts.plan.quantisation is not None:
        ends = tuple(_quantised(section, facts.plan, None) for section in ends)
        layers = {layer: _quantised(section, facts.plan, layer) for layer, section in layers.items()}
    layers = {layer: _named_apart(section) if _runs_twice(layer) else section for layer, section in layers.items()}
    if facts.plan.task is not Task.TRAINING:
        ends = tuple(map(_evaluated, ends))
        layers = {layer: _evaluated(section) for layer, section in layers.items()}
    if facts.plan.task is Task.INFERENCE:
        ends = tuple(map(frozen_section, ends))
        layers = {layer: frozen_section(section) for layer, section in layers.items()}
    units = {
        unit: recomputed([(layers[layer], times) for layer, times in unit], facts.plan)
        for unit in dict.fromkeys(facts.layers)
    }
    embedding, *others = ends
    placed: list[Unit] = [[(embedding, 1)]]
    for stack, end in zip(stacks, others, strict=True):
        placed += [*(units[unit] for unit in stack), [(end, 1)]]
    return placed


LayerUnits = tuple[tuple[tuple[LayerFacts, int], ...], ...]


def _stacks(facts: StepFacts) -> list[LayerUnits]:
    """The units of layers: all together, or the encoder's and the decoder's."""
    first_of_decoder = next((index for index, unit in enumerate(facts.layers) if unit[0][0].kind.decodes), 0)
    decoder = facts.layers[first_of_decoder:]
    return [facts.layers[:first_of_decoder], decoder] if first_of_decoder else [decoder]


def _places(facts: StepFacts) -> list[int]:
    """Of the sections around the stacks, among the units."""
    return [0, *accumulate(len(stack) + 1 for stack in _stacks(facts))]


def _outside(stack: LayerUnits, layers: Mapping[LayerFacts, Section]) -> tuple[Tensor, ...]:
    """What a stack's own frame holds of what its layers made, until the last of them has returned."""
    final_layer, _ = stack[-1][-1]
    offered = (tensor for unit in stack for layer, _ in unit for tensor in layers[layer].offered)
    return (*layers[final_layer].returned, *dict.fromkeys(offered))


@lru_cache(maxsize=KEPT_STRUCTURES)
def _ends(
    model: ModelFacts, numerics: Numerics, numerics_of_head: Numerics, outside: tuple[tuple[Tensor, ...], ...]
) -> tuple[Section, ...]:
    """What is around the stacks of layers: embedding, between encoder and decoder the end of the one and the
    embedding of the other, head. `outside`: what each stack's frame holds beside what was made before its layers."""
    wiring = parts_of(model.kind.wiring)
    first_of_decoder = wiring.decoder_embeddings if len(outside) == 1 else None
    embedding = (first_of_decoder or wiring.embeddings)(model, numerics)
    before = [embedding]
    if wiring.bridge is not None and first_of_decoder is None:
        before.append(wiring.bridge(model, numerics, (*embedding.held, *outside[0])))
    last = wiring.head(model, wiring.end, numerics_of_head, (*before[-1].held, *outside[-1]))
    if model.frozen_embedding:
        return frozen_section(embedding), with_frozen(last, embedding.parameters())
    return *before, last


@lru_cache(maxsize=KEPT_STRUCTURES)
def _layer(layer: LayerFacts, numerics: Numerics) -> Section:
    section = parts_of(layer.kind.wiring).layer(layer, numerics)
    return frozen_section(section) if layer.frozen else section


@lru_cache(maxsize=KEPT_STRUCTURES)
def _adapted(section: Section, facts: AdapterFacts, numerics: Numerics) -> Section:
    from .adapters.adapt import adapt  # most steps have no adapter

    return adapt(section, facts, numerics)


@lru_cache(maxsize=KEPT_STRUCTURES)
def _quantised(section: Section, plan: Plan, layer: LayerFacts | None) -> Section:
    from .quantisation.forward import quantised  # most steps have no quantised weights

    return quantised(section, plan.quantisation, layer, plan.numerics) if plan.quantisation else section


def _runs_twice(layer: LayerFacts) -> bool:
    """Some of its modules: on tokens, and on the embeddings of their distances."""
    return layer.kind.relative_positions is RelativePositions.SHARED


_named_apart = lru_cache(maxsize=KEPT_STRUCTURES)(each_written_once)
_evaluated = lru_cache(maxsize=KEPT_STRUCTURES)(without_gradients)


def _parts(placed: list[Pieces], facts: StepFacts) -> Iterator[Part]:
    embedding, last = placed[0][0][0], placed[-1][0][0]
    plan = _not_recomputed(facts.plan)
    in_layers = {
        each: not (each is embedding or each is last or each.section.is_bridge)
        for pieces in placed
        for each, _ in pieces
    }
    owned: dict[Piece, Owned] = {}
    elsewhere = frozenset[Tensor]()
    for each, in_layer in in_layers.items():
        owned[each] = _owned(each, elsewhere, plan, in_layer=in_layer)
        if not in_layer:
            elsewhere |= {tensor for tensor, _ in each.parameters}
    for pieces in placed:
        of_pieces = tuple((owned[each], times) for each, times in pieces)
        yield part(pieces, of_pieces, tuple(_regularisations(pieces, facts)), in_layer=in_layers[pieces[0][0]])


def _persistent(parameters: Iterable[Tensor], plan: Plan, *, in_layer: bool) -> Iterator[Tensor]:
    """Parameters, then what lives between steps for each trained one, then the averaged weights."""
    parameters = list(parameters)
    yield from parameters
    for tensor in parameters:
        if tensor.trainable:
            yield from kept_between_steps(tensor, plan, in_layer=in_layer)
    if plan.weight_ema:
        yield from map(averaged, parameters)


def _not_recomputed(plan: Plan) -> Plan:
    """What is there between steps, and the optimizer's phase, are one for all ways of recomputation."""
    return replace(
        plan,
        recompute=Recompute.NONE,
        recompute_saved_operators=frozenset(),
        recompute_interval=1,
        recompute_group_size=1,
        recompute_offload=False,
    )


def _owned(of: Piece, elsewhere: frozenset[Tensor], plan: Plan, *, in_layer: bool) -> Owned:
    """What one piece owns; `elsewhere` are the parameters of what is before it around layers, of which tied ones belong
    there."""
    parameters = tuple([item for item in of.parameters if item[0] not in elsewhere])
    return _between_steps(parameters, tuple(of.section.buffers()), plan, in_layer=in_layer)


@lru_cache(maxsize=KEPT_STRUCTURES)
def _between_steps(
    parameters: tuple[tuple[Tensor, Component], ...], buffers: tuple[Tensor, ...], plan: Plan, *, in_layer: bool
) -> Owned:
    persistent = [*_persistent((tensor for tensor, _ in parameters), plan, in_layer=in_layer), *buffers]
    return Owned(parameters, (*persistent, *(map(averaged, buffers) if plan.weight_ema else ())))
