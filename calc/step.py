"""One training step of a model: its sections, their events, and how they follow each other.

What a step's ledger looks like depends on facts (kinds, types, choices), not on sizes; so it is built once for each set of facts and kept.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from .adapters import AdapterFacts, adapt, check_targets
from .architecture import Wiring
from .blocks import EMBEDDINGS, LAYERS, LayerFacts, ModelFacts, head
from .ledger import Component, Section, Sizes, Tensor, requires_gradient, saved_for_backward
from .flops import Products, products
from .lifetimes import Context, Event, Lifetimes, gradient_of, lifetimes
from .operators import Numerics
from .recomputation import RECOMPUTATIONS
from .scenario import Recompute
from .timeline import Program, storage_bytes

KEPT_STRUCTURES = 256
"""How many sets of facts are kept built; each takes some hundred kilobytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """All that a step's ledger depends on beside sizes."""

    model: ModelFacts
    layers: tuple[LayerFacts, ...]
    """One per section of layers."""
    numerics: Numerics
    recompute: Recompute
    adapter: AdapterFacts | None
    loss_scaling: bool
    """The loss goes through a GradScaler."""
    gradients_persist: bool
    """Gradients are kept between steps (a recipe's own buffers)."""


@dataclass(frozen=True)
class Part:
    """A section with its events, for a micro-batch without and with earlier gradients."""

    section: Section
    life: Lifetimes
    forward: Program
    forward_end: Program
    backward: Program
    backward_later: Program
    parameters: tuple[tuple[Tensor, Component], ...]
    products: Products

    def saved_bytes(self, sizes: Sizes) -> int:
        """What its forward leaves behind, output included, input dropped if nothing keeps it."""
        return sum(
            count * storage_bytes(tensor, sizes)
            for program in (self.forward, self.forward_end)
            for tensor, count in program.net.items()
        )


@dataclass(frozen=True)
class Step:
    """The parts of a step in the order of forward: embedding, layers, head."""

    wiring: Wiring
    parts: tuple[Part, ...]
    between: Program
    """After forward: the scaled loss is made, the outputs are dropped, the backward pass gets its first gradient."""
    finish: Program
    """After backward: the scaled loss and its gradient are dropped."""


@lru_cache(maxsize=KEPT_STRUCTURES)
def step(facts: StepFacts) -> Step:
    """The step that `facts` describe."""
    sections = _sections(facts)
    contexts = _contexts(sections, facts)
    parts = tuple(_part(section, context, facts) for section, context in zip(sections, contexts, strict=True))
    loss = sections[-1].output
    logits = _logits(sections[-1])
    names = ("loss / k", *(("loss · scale",) if facts.loss_scaling else ()), "∂loss / k")
    scalars = [replace(loss, name=name) for name in names]
    between: list[Event] = [(scalars[0], True), (loss, False), (logits, False)]
    between += [(scalar, True) for scalar in (*scalars[1:], gradient_of(loss))]
    return Step(
        wiring=facts.model.wiring,
        parts=parts, between=Program(between), finish=Program([(scalar, False) for scalar in scalars]))


def _logits(last: Section) -> Tensor:
    """What the model's outputs hold until they are dropped."""
    return next(tensor for row in last.rows for tensor in row.writes if tensor.name == "logits")


def _sections(facts: StepFacts) -> list[Section]:
    recompute = RECOMPUTATIONS[facts.recompute]
    embedding = EMBEDDINGS[facts.model.wiring](facts.model, facts.numerics)
    layers = [LAYERS[layer.wiring](layer, facts.numerics) for layer in facts.layers]
    sections = [embedding, *layers, head(facts.model, facts.numerics, embedding.held)]
    if facts.adapter is not None:
        check_targets(sections, facts.adapter)
        sections = [adapt(section, facts.adapter, facts.numerics) for section in sections]
    return [sections[0], *(recompute(layer) for layer in sections[1:-1]), sections[-1]]


def _contexts(sections: list[Section], facts: StepFacts) -> list[Context]:
    """Who needs gradients, and which section frees what several of them use."""
    embedding, *layers, last = sections
    made = {tensor for row in embedding.rows for tensor in row.writes}
    required = requires_gradient(embedding.rows)
    leaves = frozenset({embedding.leaf} if facts.recompute is Recompute.FULL and not required else ())
    required = requires_gradient(embedding.rows, leaves)
    own = {tensor for row in embedding.rows for tensor in saved_for_backward(row, required)}
    asks = embedding.output in required
    contexts: list[Context] = []
    kept: set[Tensor] = set(leaves)
    held = embedding.output if embedding.output in embedding.held else None
    for layer in layers:
        context = Context(input_required=asks, held_input=held if not contexts else None)
        life = lifetimes(layer, context)
        kept |= {held if tensor == layer.input and held and not contexts else tensor for tensor in life.kept_from_outside}
        asks = asks or life.output_required
        contexts.append(context)
    shared = (made & set(embedding.held)) | (made & kept)
    released = frozenset(shared - kept - own)
    tied = {tensor for tensor, _ in last.parameters() if tensor.trainable} & {tensor for tensor, _ in embedding.parameters()}
    first = Context(
        input_required=False,
        leaves=leaves,
        exported=frozenset(shared - own),
        kept=frozenset(made & kept - {embedding.output}),
        meeting=dict.fromkeys(tied, not facts.numerics.autocast),
    )
    final = Context(input_required=asks, released=released, exported=frozenset({_logits(last)}), waiting=frozenset(tied))
    return [first, *contexts, final]


def _part(section: Section, context: Context, facts: StepFacts) -> Part:
    later = lifetimes(section, replace(context, gradients_exist=True))
    first = later if facts.gradients_persist else lifetimes(section, context)
    return Part(
        section=section,
        life=first,
        forward=Program(first.forward),
        forward_end=Program(first.forward_end),
        backward=Program(first.backward),
        backward_later=Program(later.backward),
        parameters=tuple(section.parameters()),
        products=products(section.rows, first),
    )
