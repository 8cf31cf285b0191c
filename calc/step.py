"""One training step of a model: its sections, their events, and how they follow each other.

What a step's ledger looks like depends on facts (kinds, types, choices), not on sizes; so it is built once for each
set of facts and kept.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any

from .adapters import AdapterFacts, adapt, check_modules, frozen_section, with_frozen
from .architecture import Wiring
from .blocks.facts import LayerFacts, ModelFacts
from .blocks.head import head
from .evaluation import Batches, batches, without_gradients
from .flops import AttentionProducts, Products, attention_products, products
from .grad_scaler import uses_grad_scaler
from .ledger import Component, Kind, Section, Tensor, requires_gradient, saved_for_backward
from .lifetimes import NEXT, Context, Event, Lifetimes, gradient_of, lifetimes
from .optimizer_step import OptimizerStep, optimizer_step
from .optimizers import averaged, kept_between_steps
from .plan import Plan
from .recomputation import makes_leaves, recomputed
from .scenario import Task
from .sizes import Counts, StorageClass, counted, storage_class, weighted
from .timeline import Program
from .wirings import WIRINGS

KEPT_STRUCTURES = 256
"""How many sets of facts are kept built; each takes some hundred kilobytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """All that a step's ledger depends on beside sizes."""

    model: ModelFacts
    layers: tuple[tuple[LayerFacts, ...], ...]
    """Per section of layers, those that follow each other in it."""
    plan: Plan
    """Without the adapter, whose facts stand apart from its sizes."""
    adapter: AdapterFacts | None


class Sum(Enum):
    """What is summed over all parts of a step, and by what it is told apart."""

    PARAMETERS = "elements, by component"
    TRAINED = "elements"
    PERSISTENT = "storages, by kind"
    CHECKPOINTED = "shapes and types, by kind and whether trained"
    SAVED = "storages that saved-tensor hooks see"
    OFFLOADED = "storages in host memory between forward and backward"
    PRODUCTS = "FLOPs' shapes, by the field of Products"


@dataclass(frozen=True, eq=False)
class Part:
    """A section with its events and everything else of it that is summed, each made when first asked for."""

    section: Section
    context: Context
    in_layer: bool
    """It is a layer, neither embedding nor head."""
    parameters: tuple[tuple[Tensor, Component], ...]
    """Its own: tied weights belong to the embedding."""
    persistent: tuple[Tensor, ...]
    """Parameters, optimizer states and gradients that live between steps."""

    @cached_property
    def life(self) -> Lifetimes:
        return lifetimes(self.section, self.context)

    @cached_property
    def forward(self) -> Program:
        return Program(self.life.forward)

    @cached_property
    def forward_end(self) -> Program:
        return Program(self.life.forward_end)

    @cached_property
    def backward(self) -> Program:
        return Program(self.life.backward)

    @cached_property
    def backward_later(self) -> Program:
        """Of a micro-batch that finds gradients of an earlier one."""
        return Program(lifetimes(self.section, replace(self.context, gradients_exist=True)).backward)

    @cached_property
    def trained(self) -> list[Tensor]:
        return [tensor for tensor, _ in self.parameters if tensor.trainable]

    @cached_property
    def counts(self) -> Mapping[Sum, Mapping[Any, Counts]]:
        """What it adds to each sum over the step."""
        done = products(self.section.rows, self.life)
        return {
            Sum.PARAMETERS: _counts((component, tensor.shape) for tensor, component in self.parameters),
            Sum.TRAINED: _counts((None, tensor.shape) for tensor in self.trained),
            Sum.PERSISTENT: _counts((tensor.kind, storage_class(tensor)) for tensor in self.persistent),
            Sum.CHECKPOINTED: checkpointed(self.persistent),
            Sum.SAVED: _counts((None, storage_class(tensor)) for tensor in self.life.saved),
            Sum.OFFLOADED: _counts((None, storage_class(tensor)) for tensor in self.life.offloaded),
            Sum.PRODUCTS: {name: getattr(done, name) for name in Products.__dataclass_fields__},
        }

    @cached_property
    def attention(self) -> AttentionProducts:
        """Of one layer."""
        return attention_products(self.section.rows[: len(self.section.rows) // self.section.num_layers])


def _counts(items: Iterable[tuple[Any, Any]]) -> Mapping[Any, Counts]:
    """For each first of `items` how often there is each second."""
    found: dict[Any, list[Any]] = defaultdict(list)
    for name, key in items:
        found[name].append(key)
    return {name: counted(keys) for name, keys in found.items()}


def checkpointed(tensors: Iterable[Tensor]) -> Mapping[Any, Counts]:
    """What a checkpoint holds of `tensors`: by kind and whether trained, shapes and types."""
    held = (tensor for tensor in tensors if tensor.kind in (Kind.PARAMETERS, Kind.OPTIMIZER_STATES))
    return _counts(((tensor.kind, tensor.trainable), (tensor.shape, tensor.dtype)) for tensor in held)


@dataclass(frozen=True, eq=False)
class Step:
    """The parts of a step in the order of forward: embedding, layers, head."""

    wiring: Wiring
    parts: tuple[Part, ...]
    between: Program
    """After forward: the scaled loss is made, the outputs are dropped, the backward pass gets its first gradient."""
    finish: Program
    """After backward: the scaled loss and its gradient are dropped."""
    optimizer: OptimizerStep
    batches: Batches | None
    """Of an evaluation: what is around its forward passes."""
    saved_by_several: tuple[StorageClass, ...]
    """What saved-tensor hooks see once, though several parts keep it and none of them alone makes it its own."""

    @cached_property
    def origins(self) -> dict[str, str]:
        """What makes each tensor, by its name: the operation and its module."""
        origins: dict[str, str] = {}
        for row in (row for part in self.parts for row in part.section.rows):
            place = f"{row.module}: {row.name}" if row.module else row.name
            for tensor in (*row.writes, *row.temporaries, *row.backward_temporaries):
                origins.setdefault(tensor.name.removeprefix(NEXT), place)
        return origins


Layout = tuple[tuple[int, int], ...]
"""Per part how often it is there, and which of the step's different sizes it has."""


@lru_cache(maxsize=KEPT_STRUCTURES)
def merged(step: Step, layout: Layout) -> Mapping[Sum, Mapping[Any, tuple[Counts, ...]]]:
    """The sums of all parts: for each of the different sizes one Counts. They depend on no size."""
    num_sizes = len({which for _, which in layout})
    sums: dict[Sum, dict[Any, list[Counter]]] = {each: {} for each in Sum}
    for part, (count, which) in zip(step.parts, layout, strict=True):
        for each, named in part.counts.items():
            for name, counts in named.items():
                whole = sums[each].setdefault(name, [Counter() for _ in range(num_sizes)])[which]
                for key, times in zip(*counts, strict=True):
                    whole[key] += count * times
    return {
        each: {name: tuple(map(weighted, by_size)) for name, by_size in named.items()} for each, named in sums.items()
    }


@lru_cache(maxsize=KEPT_STRUCTURES)
def step(facts: StepFacts) -> Step:
    """The step that `facts` describe."""
    sections = _sections(facts)
    contexts = _contexts(sections, facts)
    parts = tuple(_parts(sections, contexts, facts))
    between, finish = _around_backward(sections[-1], facts)
    shared = frozenset[Tensor]().union(*(part.life.saved_from_outside for part in parts)) - parts[0].life.saved
    return Step(
        wiring=facts.model.kind.wiring,
        parts=parts,
        between=between,
        finish=finish,
        optimizer=optimizer_step([part.trained for part in parts], [part.in_layer for part in parts], facts.plan),
        batches=_batches(sections[-1], facts.plan) if facts.plan.task is Task.EVALUATION else None,
        saved_by_several=tuple(map(storage_class, shared)),
    )


def _around_backward(last: Section, facts: StepFacts) -> tuple[Program, Program]:
    """Before backward: `loss / k`, `del outputs`, the scaling, the first gradients. After it: the scalars go, and the
    outputs where they are held."""
    loss = last.output
    names = ("loss / k", *(("loss · scale",) if uses_grad_scaler(facts.plan) else ()), "∂loss / k")
    scalars = [replace(loss, name=name) for name in names]
    dropped: list[Event] = [(tensor, False) for tensor in (loss, *_logits(last))]
    made: list[Event] = [(scalar, True) for scalar in (*scalars, gradient_of(loss))]
    gone: list[Event] = [(scalar, False) for scalar in scalars]
    if facts.plan.hold_outputs:
        return Program(made), Program([*gone, *dropped])
    return Program([made[0], *dropped, *made[1:]]), Program(gone)


def _logits(last: Section) -> frozenset[Tensor]:
    """What the model's outputs hold until they are dropped; nothing where head and loss are one call."""
    return frozenset(tensor for row in last.rows for tensor in row.writes if tensor.name == "logits")


def _batches(last: Section, plan: Plan) -> Batches:
    [logits] = _logits(last)
    return batches(logits, last.output, plan.eval_accumulation_steps)


def _sections(facts: StepFacts) -> list[Section]:
    numerics = facts.plan.numerics
    if facts.adapter is not None and facts.adapter.keeps_types:
        numerics = replace(numerics, outputs=numerics.weights)
    wiring = WIRINGS[facts.model.kind.wiring]
    embedding = wiring.embeddings(facts.model, numerics)
    layers = {layer: WIRINGS[layer.kind.wiring].layer(layer, numerics) for unit in facts.layers for layer in unit}
    last = head(facts.model, wiring.end, facts.plan.numerics, embedding.held)
    layers = {layer: frozen_section(section) if layer.frozen else section for layer, section in layers.items()}
    if facts.model.frozen_embedding:
        embedding, last = frozen_section(embedding), with_frozen(last, embedding.parameters())
    if facts.adapter is not None:
        check_modules([embedding, *layers.values(), last], facts.adapter)
        embedding, last = (adapt(section, facts.adapter, facts.plan.numerics) for section in (embedding, last))
        layers = {layer: adapt(section, facts.adapter, facts.plan.numerics) for layer, section in layers.items()}
    units = {unit: recomputed([layers[layer] for layer in unit], facts.plan) for unit in facts.layers}
    if facts.plan.task is Task.EVALUATION:
        embedding, last = without_gradients(embedding), without_gradients(last)
        units = {unit: without_gradients(section) for unit, section in units.items()}
    return [embedding, *(units[unit] for unit in facts.layers), last]


def _contexts(sections: list[Section], facts: StepFacts) -> list[Context]:
    """Who needs gradients, and which section frees what several of them use."""
    embedding, *layers, last = sections
    made = frozenset(tensor for row in embedding.rows for tensor in row.writes)
    required = requires_gradient(embedding.rows)
    leaves = frozenset(embedding.leaves).difference(required) if makes_leaves(facts.plan) else frozenset()
    required = requires_gradient(embedding.rows, leaves)
    own = frozenset(tensor for row in embedding.rows for tensor in saved_for_backward(row, required))
    held = embedding.output if embedding.output in embedding.held else None
    contexts, lives = _layer_contexts(layers, input_required=embedding.output in required, held=held)
    freed = _freed_in_backward(lives, made - own)
    kept = leaves | (frozenset[Tensor]().union(*(life.kept_from_outside for life in lives)) & made)
    freed_by_first = {embedding.output} if layers[0].input in lives[0].kept_from_outside else set[Tensor]()
    if held is not None:
        kept |= freed_by_first
    shared = (made & set(embedding.held)) | kept
    tied = {tensor for tensor, _ in embedding.parameters()} & {tensor for tensor, _ in last.parameters()}
    tied = {tensor for tensor in tied if tensor.trainable}
    first = Context(
        input_required=False,
        leaves=leaves,
        exported=shared - own,
        kept=kept.difference(*freed) - freed_by_first,
        meeting=frozenset(tied),
        meets_view=facts.model.linear_loss is None and not facts.plan.numerics.autocast,
    )
    final = Context(
        input_required=lives[-1].output_required,
        released=shared - kept - own,
        exported=_logits(last),
        waiting=frozenset(tied),
    )
    contexts = [replace(context, freed_in_backward=last) for context, last in zip(contexts, freed, strict=True)]
    return [first, *contexts, final]


def _freed_in_backward(lives: list[Lifetimes], shared: frozenset[Tensor]) -> list[frozenset[Tensor]]:
    """Which of the `shared` tensors each layer frees: of those that keep it the first, where backward comes last."""
    freed: list[frozenset[Tensor]] = []
    for life in lives:
        freed.append((life.kept_from_outside & shared).difference(*freed))
    return freed


def _layer_contexts(
    layers: list[Section], *, input_required: bool, held: Tensor | None
) -> tuple[list[Context], list[Lifetimes]]:
    """The layers' contexts, and what follows from them: whose output needs a gradient, what they keep of others."""
    contexts: list[Context] = []
    lives: list[Lifetimes] = []
    known: dict[tuple[int, Context], Lifetimes] = {}
    for layer in layers:
        context = Context(input_required=input_required, held_input=None if contexts else held)
        life = known.get((id(layer), context)) or known.setdefault((id(layer), context), lifetimes(layer, context))
        contexts.append(context)
        lives.append(life)
        input_required = life.output_required
    return contexts, lives


def _parts(sections: list[Section], contexts: list[Context], facts: StepFacts) -> Iterator[Part]:
    tied = {tensor for tensor, _ in sections[0].parameters()}
    known: dict[tuple[int, Context], Part] = {}  # layers of two kinds may alternate a hundred times
    for section, context in zip(sections, contexts, strict=True):
        if (id(section), context) not in known:
            parameters = tuple(
                (tensor, component)
                for tensor, component in section.parameters()
                if section is sections[0] or tensor not in tied
            )
            in_layer = section is not sections[0] and section is not sections[-1]
            known[id(section), context] = Part(
                section=section,
                context=context,
                in_layer=in_layer,
                parameters=parameters,
                persistent=(
                    *_persistent((tensor for tensor, _ in parameters), facts.plan, in_layer=in_layer),
                    *section.buffers(),
                ),
            )
        yield known[id(section), context]


def _persistent(parameters: Iterable[Tensor], plan: Plan, *, in_layer: bool) -> Iterator[Tensor]:
    """Parameters, then what lives between steps for each trained one, then the averaged weights."""
    parameters = list(parameters)
    yield from parameters
    for tensor in parameters:
        if tensor.trainable:
            yield from kept_between_steps(tensor, plan, in_layer=in_layer)
    if plan.weight_ema:
        yield from map(averaged, parameters)
