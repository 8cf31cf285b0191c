"""One training step of a model: its sections, their events, and how they follow each other.

What a step's ledger looks like depends on facts (kinds, types, choices), not on sizes; so it is built once for each
set of facts and kept.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from .adapters import AdapterFacts, adapt, check_modules, frozen_section, with_frozen
from .architecture import Wiring
from .blocks import LayerFacts, ModelFacts, gpt2_embeddings, gpt2_layer, head, llama_embeddings, llama_layer
from .dtype import DType
from .flops import AttentionProducts, Counts, Products, attention_products, once, products
from .grad_scaler import uses_grad_scaler
from .ledger import Component, Kind, Section, Shape, Tensor, requires_gradient, saved_for_backward
from .lifetimes import NEXT, Context, Event, Lifetimes, gradient_of, lifetimes
from .megatron import megatron_layer
from .operators import Numerics
from .optimizer_step import OptimizerStep, optimizer_step
from .optimizers import averaged, kept_between_steps
from .plan import Plan
from .recomputation import makes_leaves, recomputed
from .sizes import StorageClass, storage_class
from .timeline import Program

EMBEDDINGS: dict[Wiring, Callable[[ModelFacts, Numerics], Section]] = {
    Wiring.GPT2: gpt2_embeddings,
    Wiring.LLAMA: llama_embeddings,
    Wiring.MEGATRON: gpt2_embeddings,
}
LAYERS: dict[Wiring, Callable[[LayerFacts, Numerics], Section]] = {
    Wiring.GPT2: gpt2_layer,
    Wiring.LLAMA: llama_layer,
    Wiring.MEGATRON: megatron_layer,
}

Checkpointed = Mapping[tuple[Kind, bool], Mapping[tuple[Shape, DType], int]]
"""What a checkpoint holds: by kind and whether trained, how many tensors there are of each shape and type."""
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
    def parameter_counts(self) -> Mapping[Component, Counts]:
        shapes: dict[Component, list[Shape]] = defaultdict(list)
        for tensor, component in self.parameters:
            shapes[component].append(tensor.shape)
        return {component: once(each) for component, each in shapes.items()}

    @cached_property
    def trained_counts(self) -> Counts:
        return once(tensor.shape for tensor in self.trained)

    @cached_property
    def persistent_classes(self) -> Mapping[Kind, tuple[StorageClass, ...]]:
        return {
            kind: tuple(storage_class(tensor) for tensor in self.persistent if tensor.kind is kind)
            for kind in {tensor.kind for tensor in self.persistent}
        }

    @cached_property
    def checkpointed(self) -> Checkpointed:
        return checkpointed(self.persistent)

    @cached_property
    def saved_classes(self) -> tuple[StorageClass, ...]:
        """What saved-tensor hooks see of its own."""
        return tuple(map(storage_class, self.life.saved))

    @cached_property
    def offloaded_classes(self) -> tuple[StorageClass, ...]:
        """What lies in host memory between forward and backward."""
        return tuple(map(storage_class, self.life.offloaded))

    @cached_property
    def products(self) -> Products:
        return products(self.section.rows, self.life)

    @cached_property
    def attention(self) -> AttentionProducts:
        """Of one layer."""
        return attention_products(self.section.rows[: len(self.section.rows) // self.section.num_layers])


def checkpointed(tensors: Iterable[Tensor]) -> Checkpointed:
    counts: dict[tuple[Kind, bool], Counter[tuple[Shape, DType]]] = defaultdict(Counter)
    for tensor in tensors:
        if tensor.kind in (Kind.PARAMETERS, Kind.OPTIMIZER_STATES):
            counts[tensor.kind, tensor.trainable][tensor.shape, tensor.dtype] += 1
    return counts


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


@lru_cache(maxsize=KEPT_STRUCTURES)
def step(facts: StepFacts) -> Step:
    """The step that `facts` describe."""
    sections = _sections(facts)
    contexts = _contexts(sections, facts)
    parts = tuple(_parts(sections, contexts, facts))
    between, finish = _around_backward(sections[-1], facts)
    shared = frozenset[Tensor]().union(*(part.life.saved_from_outside for part in parts)) - parts[0].life.saved
    return Step(
        wiring=facts.model.wiring,
        parts=parts,
        between=between,
        finish=finish,
        optimizer=optimizer_step([part.trained for part in parts], [part.in_layer for part in parts], facts.plan),
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


def _sections(facts: StepFacts) -> list[Section]:
    numerics = facts.plan.numerics
    if facts.adapter is not None and facts.adapter.keeps_types:
        numerics = replace(numerics, outputs=numerics.weights)
    embedding = EMBEDDINGS[facts.model.wiring](facts.model, numerics)
    layers = {layer: LAYERS[layer.wiring](layer, numerics) for unit in facts.layers for layer in unit}
    last = head(facts.model, facts.plan.numerics, embedding.held)
    layers = {layer: frozen_section(section) if layer.frozen else section for layer, section in layers.items()}
    if facts.model.frozen_embedding:
        embedding, last = frozen_section(embedding), with_frozen(last, embedding.parameters())
    if facts.adapter is not None:
        check_modules([embedding, *layers.values(), last], facts.adapter)
        embedding, last = (adapt(section, facts.adapter, facts.plan.numerics) for section in (embedding, last))
        layers = {layer: adapt(section, facts.adapter, facts.plan.numerics) for layer, section in layers.items()}
    units = {unit: recomputed([layers[layer] for layer in unit], facts.plan) for unit in facts.layers}
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
