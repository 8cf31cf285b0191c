"""When each tensor of a section is allocated and freed, as PyTorch's reference counts decide it.

Forward: an operation's output lives until the last operation (or Python frame) that reads it, or until the backward
of the node that saved it.
Backward (torch/csrc/autograd/engine.cpp): nodes run in the reverse order of their creation; a node's saved tensors
and the gradient it
received are freed when it has run; gradients that meet are added in place; a parameter's gradient stays.
A checkpointed region keeps what it reads from outside, and runs again, as far as the last tensor a node wants (early
stop), when the first of its
nodes asks for one (torch/utils/checkpoint.py, use_reentrant=False). A region may go on over several sections; each has
its share of it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from .contexts import HIDDEN_STATES, NEXT, OWNED, CacheEnd, Context, Event, Lifetimes, Needs
from .dtype import DType
from .ledger import Gradient, Kind, Lent, Row, Section, Tensor, requires_gradient, saved_for_backward

WITH_THE_GRAPH = -1
"""In place of a row: no node frees it."""
KEPT_NEEDS = 1024
"""Of how many sections they are kept."""


@lru_cache(maxsize=KEPT_NEEDS)
def needs(section: Section, context: Context) -> Needs:
    """What others need to know of `section`."""
    return _Builder(section, context).needs()


def sent_back(section: Section, context: Context) -> dict[Tensor, bool]:
    """The gradients that `section` leaves for those who made what it was given, and whether they can be added to."""
    return _Builder(section, context).sent_back()


def lifetimes(section: Section, context: Context) -> Lifetimes:
    """The events of one part of `section`."""
    return _Builder(section, context).build()


@dataclass(slots=True)
class _Storage:
    """A gradient's storage and how many buffers hold it."""

    tensor: Tensor
    holders: int = 1


@dataclass(slots=True)
class _Pending:
    """A gradient that waits in a node's input buffer."""

    storage: _Storage
    viewed: bool

    @property
    def can_be_added_to(self) -> bool:
        """The buffer holds the last reference to tensor and storage (can_accumulate_inplace in
        autograd/input_buffer.cpp)."""
        return self.storage.holders == 1 and not self.viewed


@dataclass(slots=True)
class _Builder:
    section: Section
    context: Context
    borrowed: list[Lent] = field(init=False)
    """What other sections made for this one."""
    required: set[Tensor] = field(init=False)
    base: dict[Tensor, Tensor] = field(init=False)
    """For a view, the tensor whose storage it shares."""
    written: set[Tensor] = field(init=False)
    local: set[Tensor] = field(init=False)
    """Storages this section allocates and frees."""
    saved: list[list[Tensor]] = field(init=False)
    """Per row the storages its node keeps, the model's own left out."""
    saving: list[int] = field(init=False)
    """Rows inside the region whose nodes keep anything, parameters included."""
    stored: frozenset[Tensor] = field(init=False)
    """What the region's first run keeps for the second."""
    inputs: set[Tensor] = field(init=False)
    """What the region reads from outside of it."""
    held: set[Tensor] = field(init=False)
    """Storages that nodes hold as attributes."""
    needed: dict[Tensor, int] = field(init=False)
    """Each storage kept through forward, with the row whose backward frees it."""
    lasting: list[Tensor] = field(init=False)
    """Of what a key/value cache holds, what it is the last to hold."""
    alias: dict[Tensor, Tensor] = field(init=False)
    """What an event calls a tensor: the output is the next part's input; what no node keeps is a temporary."""
    events: list[Event] = field(init=False, default_factory=list)
    later_leaves: frozenset[Tensor] = field(init=False)
    """Those made after the first section: they live until the graph goes."""
    of_leaves: list[Tensor] = field(init=False, default_factory=list)
    """Their gradients, which they hold."""
    left: dict[Tensor, bool] = field(init=False, default_factory=dict)
    """Gradients for earlier sections, when backward has ended."""
    waiting: set[Tensor] = field(init=False, default_factory=set)
    """Parameters of which a gradient waits for an earlier section's."""

    def __post_init__(self) -> None:
        section, context = self.section, self.context
        self.later_leaves = context.leaves if section.input is not None else frozenset()
        roots = {section.input} if section.input and context.input_required else set()
        own = {tensor for row in section.rows for tensor in row.writes}
        self.borrowed = [each for each in section.lent if each.tensor not in own]
        borrowed = {each.tensor for each in self.borrowed}
        self.required = requires_gradient(section.rows, roots | context.leaves | context.given | borrowed)
        self.base = _bases(section.rows)
        written = {self._storage(tensor) for row in section.rows for tensor in (*row.writes, *self._made(row))}
        self.written = {storage for storage in written if storage.kind not in OWNED} - self._views_of_outside(own)
        lent = {each.tensor for each in section.lent} - borrowed
        self.local = (self.written | context.released | borrowed) - context.exported - lent
        if section.input is not None:
            self.local.add(section.input)
        self.local.discard(self._storage(section.output))
        if section.is_bridge:
            self.local |= self.later_leaves
        keeping = [saved_for_backward(row, self.required) for row in section.rows]
        self.saved = [
            list(dict.fromkeys(each for each in map(self._storage, kept) if each.kind not in OWNED)) for kept in keeping
        ]
        self.saving = [index for index in self._inside() if keeping[index]]
        self.stored = section.region.stored if section.region else frozenset()
        self.inputs = self._region_inputs()
        self.held = {self._storage(x) for row in section.rows if self._is_differentiated(row) for x in row.holds}
        self.needed = self._needed()
        self.lasting = self._lasting()
        self.local.difference_update(self.lasting, self._returned())
        if self.section.goes_on and not self.section.has_begun and not self.saving:
            self.local.discard(section.input)  # a later section of the region frees it

    def needs(self) -> Needs:
        return Needs(
            output_required=self.section.output in self.required,
            saves=bool(self.saving),
            kept_from_outside=frozenset(self.needed.keys() - self.written),
            returned=self._returned(),
            offered=frozenset(self.section.offered).intersection(self.required),
            kept_of_offered=frozenset(self.section.offered).intersection(self.needed),
        )

    def sent_back(self) -> dict[Tensor, bool]:
        """Of tensors of earlier sections the gradients that are there when its backward ends: whether they can be
        added to."""
        self.alias = self._names()
        self._backward({})
        return self.left

    def _is_differentiated(self, row: Row) -> bool:
        return any(gradient.of in self.required for gradient in row.gradients)

    def _returned(self) -> frozenset[Tensor]:
        return frozenset(self.section.returned).difference(self.needed)

    def build(self) -> Lifetimes:
        section = self.section
        self.alias = self._names()
        forward_end = [(each, False) for each in sorted(_cached(section.rows) - self.needed.keys(), key=_name)]
        cache_end = [(tensor, False) for tensor in self.lasting]
        with_forward = self.context.cache_end is CacheEnd.FORWARD
        forward = self._forward()
        again = self._rows_run_again()
        freed_by = self._freed_by(self._taken(again or ()))
        graph_end = [(self.alias.get(tensor, tensor), False) for tensor in freed_by.pop(WITH_THE_GRAPH, ())]
        rerun, rerun_end = ((), ()) if again is None else self._rerun(again, freed_by)
        before_rerun, backward = self._backward(freed_by)
        graph_end = [*((gradient, False) for gradient in self.of_leaves), *graph_end]
        seen = self._seen_by_hooks()
        own = seen & (self.written | {section.input}).union(section.buffers())
        return Lifetimes(
            forward=forward,
            forward_end=(*forward_end, *(cache_end if with_forward else ())),
            graph_end=tuple(graph_end),
            outputs_end=() if with_forward else tuple(cache_end),
            before_rerun=before_rerun,
            rerun=rerun,
            rerun_end=rerun_end,
            backward=backward,
            saved=frozenset(own),
            saved_from_outside=frozenset(seen - own),
            offloaded=frozenset(self._offloaded()),
            rows_run_again=tuple(row for row in again or () if self.stored.isdisjoint(row.writes)),
            required=frozenset(self.required),
        )

    def _names(self) -> dict[Tensor, Tensor]:
        section = self.section
        saved = self.needed.keys() | self.context.kept.union(*self.saved)
        written = {tensor for row in section.rows for tensor in row.writes}
        names = {
            tensor: replace(tensor, kind=Kind.TEMPORARIES)
            for tensor in (written - saved - self.context.exported).difference(section.cached, section.returned)
            if tensor.kind is Kind.ACTIVATIONS
        }
        names |= {each.tensor: each.known_as for each in section.lent}
        if section.input is not None and self.context.held_input is not None:
            names[section.input] = self.context.held_input
        passed_on = replace(section.output, name=section.output.name.removeprefix(NEXT))
        names[section.output] = passed_on
        if section.input is None or section.offered:
            passed_on = replace(passed_on, name=HIDDEN_STATES)
        names[gradient_of(section.output)] = gradient_of(passed_on)
        return names

    def _storage(self, tensor: Tensor) -> Tensor:
        return self.base.get(tensor, tensor)

    def _views_of_outside(self, own: set[Tensor]) -> set[Tensor]:
        """Storages of earlier sections that views here share, the input's left out."""
        return set(self.base.values()) - own - {self.section.input}

    def _made(self, row: Row) -> list[Tensor]:
        """Gradients that `row` makes in forward already."""
        return [made_in_forward(gradient.of) for gradient in self._wanted(row) if gradient.in_forward]

    def _wanted(self, row: Row) -> list[Gradient]:
        return [gradient for gradient in row.gradients if gradient.of in self.required]

    # ---- The checkpointed region

    def _inside(self) -> range:
        """Its rows."""
        region = self.section.region
        return range(region.start, region.stop) if region else range(0)

    def _region_inputs(self) -> set[Tensor]:
        rows = [self.section.rows[index] for index in self._inside()]
        written = {tensor for row in rows for tensor in row.writes}
        storages = {self._storage(tensor) for row in rows for tensor in row.reads}
        read = {storage for storage in storages if storage.kind not in OWNED}
        return read - written - ({self.section.input} if self.section.has_begun else set())

    def _saved_by_checkpoint(self) -> set[Tensor]:
        """Of a region's inputs those that are saved as autograd saves; others its closure holds."""
        region = self.section.region
        if region is None:
            return set()
        return self.inputs & (self.required | {self._storage(tensor) for tensor in region.arguments})

    def _offloaded(self) -> set[Tensor]:
        region = self.section.region
        return self._saved_by_checkpoint() if region and region.offloaded else set()

    def _rows_run_again(self) -> tuple[Row, ...] | None:
        """As far as the last tensor a node saves; None where no node asks for any."""
        inside, rows = self._inside(), self.section.rows
        if self.section.goes_on:
            return rows[inside.start : inside.stop] if self.context.runs_again else None
        if not self.saving:
            return None
        last = self.saving[-1]
        saves_own_output = not set(self.saved[last]).isdisjoint(rows[last].writes)
        return rows[inside.start : last + (saves_own_output or bool(rows[last].backward_rows))]

    def _taken(self, again: Iterable[Row]) -> frozenset[Tensor]:
        """Of what was stored that which the second run comes to; the rest goes with the region."""
        return self.stored & {tensor for row in again for tensor in row.writes}

    # ---- Forward

    def _needed(self) -> dict[Tensor, int]:
        needed: dict[Tensor, int] = {}
        inside = self._inside()
        for index in reversed(range(len(self.section.rows))):
            if index not in inside:
                needed.update(dict.fromkeys(self.saved[index], index))
        if self.saving:
            for tensor in sorted(self.inputs - self._offloaded(), key=_name):
                needed[tensor] = min(self.saving[0], needed.get(tensor, self.saving[0]))
            needed.update(dict.fromkeys(sorted(self.stored, key=_name), self.saving[0]))
        return needed | dict.fromkeys(sorted(self.held | self.later_leaves, key=_name), WITH_THE_GRAPH)

    def _lasting(self) -> list[Tensor]:
        outlives_nodes = self.context.cache_end is CacheEnd.OUTPUTS_AFTER_BACKWARD
        return [tensor for tensor in self.section.cached if outlives_nodes or tensor not in self.needed]

    def _seen_by_hooks(self) -> set[Tensor]:
        """Saved-tensor hooks of the caller do not see inside a checkpointed region, but see what it keeps."""
        seen: set[Tensor] = set()
        inside, region = self._inside(), self.section.region
        for index, row in enumerate(self.section.rows):
            if index not in inside:
                seen.update(self.saved[index], self._graph(row))
                seen.update(each for each in saved_for_backward(row, self.required) if each.kind is Kind.BUFFERS)
                seen.update(self._made(row) if row.hooks_see_gradients else ())
        if region and not region.offloaded:  # else hooks nearer to it see its tensors
            seen |= self._saved_by_checkpoint()
        return seen

    def _forward(self) -> tuple[Event, ...]:
        self.events = []
        held = {self.section.input} if self.section.input and self.context.held_input else set[Tensor]()
        rows = tuple(self._without_graph(index) for index in range(len(self.section.rows)))
        self._run(rows, keep=self.needed.keys() | _cached(self.section.rows) | held)
        if self.context.region_input is not None and not self.saving:
            self._free([self.context.region_input])
        self._free(self.context.returned_before)
        return tuple(self.events)

    def _without_graph(self, index: int) -> Row:
        """A row's first run: inside a checkpoint nodes keep nothing."""
        row = self.section.rows[index]
        return replace(row, graph=()) if row.graph and index in self._inside() else row

    def _graph(self, row: Row) -> tuple[Tensor, ...]:
        """What nodes no backward reaches keep until `row`, if there are any: where its gradient might be wanted."""
        return row.graph if not row.gradients or self._wanted(row) else ()

    def _run(self, rows: tuple[Row, ...], keep: Iterable[Tensor], taken: Collection[Tensor] = ()) -> None:
        """Allocate what `rows` write, unless it is `taken` from what was stored; free what no later row of them reads
        and `keep` does not hold."""
        last_use: dict[Tensor, int] = {}
        for index, row in enumerate(rows):
            for tensor in (*row.writes, *row.reads, *self._graph(row)):
                last_use[self._storage(tensor)] = index
        dying: dict[int, list[Tensor]] = {}
        for tensor, index in last_use.items():
            if tensor in self.local and tensor not in keep:
                dying.setdefault(index, []).append(tensor)
        for index, row in enumerate(rows):
            if row.renames:
                self._free(dying.pop(index, ()))
            if not any(tensor in taken for tensor in row.writes):
                self._allocate(tensor for tensor in row.writes if self._storage(tensor) is tensor)
                self._allocate(self._made(row))
                self._moment(row.temporaries)
            self._free(dying.get(index, ()))

    # ---- Backward

    def _freed_by(self, taken: frozenset[Tensor]) -> dict[int, list[Tensor]]:
        """What each row's backward frees; what the second run has `taken` it frees as its own."""
        freed_by: dict[int, list[Tensor]] = {}
        own = (self.local | self.context.freed_in_backward) - self.context.kept - taken
        for tensor, index in self.needed.items():
            if tensor in own:
                freed_by.setdefault(index, []).append(tensor)
        if self.context.region_input is not None and self.saving:
            freed_by.setdefault(self.saving[0], []).append(self.context.region_input)
        return freed_by

    def _rerun(
        self, again: tuple[Row, ...], freed_by: dict[int, list[Tensor]]
    ) -> tuple[tuple[Event, ...], tuple[Event, ...]]:
        """Run the region's forward again, and what is freed when all of it has run."""
        self.events = []
        offloaded = self._offloaded()
        self.alias |= {tensor: _from_host(tensor) for tensor in offloaded}
        self._allocate(sorted(offloaded, key=_name))
        outside = self.inputs - offloaded
        wanted: dict[Tensor, int] = {}
        for index in reversed(self.saving):
            wanted.update((tensor, index) for tensor in self.saved[index] if tensor not in outside)
        cached = _cached(again)
        left = self.section.rows[self._inside().start + len(again) : self._inside().stop]
        unread = {self._storage(tensor) for row in left for tensor in (*row.reads, *self._graph(row))}
        local, self.local = self.local, self._made_again(again)
        unread |= self.held
        self._run(again, keep=wanted.keys() | cached | unread, taken=self._taken(again))
        unread &= self.local
        self.local = local
        rerun, self.events = tuple(self.events), []
        self._free(sorted((cached | unread) - wanted.keys(), key=_name))
        self._free(sorted(offloaded - wanted.keys(), key=_name))
        for tensor, index in wanted.items():
            freed_by.setdefault(index, []).append(tensor)
        return rerun, tuple(self.events)

    def _made_again(self, again: tuple[Row, ...]) -> set[Tensor]:
        """Storages that running again allocates, and that it or backward frees: of the sections of one region each
        its input."""
        section = self.section
        made = {tensor for row in again for tensor in row.writes if self._storage(tensor) is tensor}
        if self.section.has_begun and section.input is not None:
            made.add(section.input)
        return made - {self._storage(section.output)} if self.section.goes_on else made

    def _backward(self, freed_by: dict[int, list[Tensor]]) -> tuple[tuple[Event, ...], tuple[Event, ...]]:
        """Backward before the region runs again, and from then on."""
        section, inside = self.section, self._inside()
        self.events, num_before = [], 0
        self._free(sorted(self.context.kept, key=_name))
        buffers = self._arrived()
        for index in reversed(range(len(section.rows))):
            if self.saving and index == self.saving[-1] and not self.section.goes_on:
                num_before = len(self.events)
            self._node(section.rows[index], buffers, freed_by.get(index, ()), checkpointed=index in inside)
        for leaf in self.later_leaves & buffers.keys():
            self._pass_on(buffers[leaf].storage, gradient_of(leaf))
            self.of_leaves.append(gradient_of(leaf))
        if section.input is None:
            for leaf in buffers.values():
                self._release(leaf.storage)
        elif section.input in buffers:
            self._pass_on(buffers[section.input].storage, gradient_of(section.input))
        for tensor in self.context.given & buffers.keys():
            self._pass_on(buffers[tensor].storage, gradient_of(tensor))
            self.left[tensor] = buffers[tensor].can_be_added_to
        for each in self.borrowed:
            if each.tensor in buffers:
                self._pass_on(buffers[each.tensor].storage, each.gradient)
        return tuple(self.events[:num_before]), tuple(self.events[num_before:])

    def _arrived(self) -> dict[Tensor, _Pending]:
        """The gradients that later sections have sent back."""
        output, arrived = self.section.output, dict[Tensor, _Pending]()
        if output in self.required:
            arrived[output] = _Pending(_Storage(gradient_of(output)), viewed=False)
        for tensor, can_be_added_to in self.context.sent_back.items():
            arrived[tensor] = _Pending(_Storage(gradient_of(tensor)), viewed=not can_be_added_to)
        made = (each for each in self.section.lent if each not in self.borrowed and each.tensor in self.required)
        return arrived | {each.tensor: _Pending(_Storage(each.gradient), each.viewed) for each in made}

    def _pass_on(self, storage: _Storage, gradient: Tensor) -> None:
        """Others know a gradient by one name, whatever buffer a kernel wrote it to: the part before that of its output,
        the optimizer that of a parameter. One that forward made changes its name here."""
        made = storage.tensor
        if made in (gradient, gradient_of(self.section.output)):
            return
        if (made, True) in self.events:
            self.events = [(gradient if tensor == made else tensor, allocated) for tensor, allocated in self.events]
        else:
            self._free([made])
            self._allocate([gradient])
        storage.tensor = gradient

    def _node(self, row: Row, buffers: dict[Tensor, _Pending], saved: Iterable[Tensor], *, checkpointed: bool) -> None:
        """Run one autograd node."""
        written = [(index, tensor) for index, tensor in enumerate(row.writes) if tensor not in self.later_leaves]
        received = {index: buffers.pop(tensor).storage for index, tensor in written if tensor in buffers}
        if row.overwrites_saved or not received:
            self._free(saved)
            saved = ()
        if not received:
            return
        wanted = self._wanted(row)
        made = [_made_of(gradient, received) for gradient in wanted]
        dropped = self._make_gradients(row, wanted)
        self._moment(row.backward_prelude)
        self._moment(row.backward_temporaries)
        if checkpointed:
            self._free(saved)  # what a checkpoint hands out only the node's own call holds
        for gradient in wanted:
            if gradient.unreduced is not None:
                self._allocate([gradient_of(gradient.of)])
                self._free([gradient.unreduced])
        self._free(dropped)
        for storage in received.values():
            self._release(storage)
        if not checkpointed:
            self._free(saved)
        for gradient, storage in zip(wanted, made, strict=True):
            pending = _Pending(storage, gradient.viewed)
            if gradient.of.kind is Kind.PARAMETERS:
                self._accumulate(gradient.of, pending)
            else:
                buffers[gradient.of] = self._meet(buffers.get(gradient.of), pending)

    def _make_gradients(self, row: Row, wanted: list[Gradient]) -> list[Tensor]:
        """Allocates what the node of `row` makes; of that, what nobody wants."""
        new = [gradient for gradient in row.gradients if not gradient.passes and not gradient.in_forward]
        made = [_first(gradient) for gradient in new if gradient in wanted]
        unwanted = [each for each in new if each not in wanted and not each.made_if_wanted]
        dropped = [_first(gradient) for gradient in unwanted] if row.makes_all_gradients else []
        if row.backward_rows:
            local, self.local = self.local, {tensor for each in row.backward_rows for tensor in each.writes}
            self._run(row.backward_rows, keep=(*made, *dropped))
            self.local = local
        else:
            self._allocate((*made, *dropped))
        return dropped

    def _meet(self, waiting: _Pending | None, new: _Pending) -> _Pending:
        """Two gradients of one tensor are added: in place where the engine may, else into a third."""
        if waiting is None:
            return new
        if waiting.can_be_added_to:
            self._release(new.storage)
            return waiting
        total = _Pending(_Storage(waiting.storage.tensor), viewed=False)
        self._allocate([total.storage.tensor])
        self._release(waiting.storage)
        self._release(new.storage)
        return total

    def _accumulate(self, parameter: Tensor, new: _Pending) -> None:
        """A parameter's gradient becomes its `.grad`, or is added to the one that exists."""
        context = self.context
        self._pass_on(new.storage, gradient_of(parameter))
        if parameter in self.waiting:
            self._release(new.storage)  # added to the first in place
            return
        if parameter in context.meeting:
            waiting = _Pending(_Storage(gradient_of(parameter)), context.meets_view)
            new = self._meet(waiting, new)
        if parameter in context.waiting:
            self.waiting.add(parameter)
            return
        if context.sums_in_fp32 and not context.gradients_exist:
            self._allocate([summed_in_fp32(parameter)])
        if context.sums_in_fp32 or context.gradients_exist:
            self._release(new.storage)

    def _release(self, storage: _Storage) -> None:
        storage.holders -= 1
        if storage.holders == 0:
            self._free([storage.tensor])

    def _allocate(self, tensors: Iterable[Tensor]) -> None:
        self.events.extend((self.alias.get(tensor, tensor), True) for tensor in tensors)

    def _free(self, tensors: Iterable[Tensor]) -> None:
        self.events.extend((self.alias.get(tensor, tensor), False) for tensor in tensors)

    def _moment(self, temporaries: Iterable[Tensor]) -> None:
        temporaries = tuple(temporaries)
        self._allocate(temporaries)
        self._free(temporaries)


def _made_of(gradient: Gradient, received: Mapping[int, _Storage]) -> _Storage:
    """What a node gives as `gradient`."""
    if gradient.passes:
        received[gradient.output].holders += 1
        return received[gradient.output]
    return _Storage(made_in_forward(gradient.of) if gradient.in_forward else gradient_of(gradient.of))


def _first(gradient: Gradient) -> Tensor:
    """What a node makes for `gradient`, before the engine fits it."""
    return gradient.unreduced or gradient_of(gradient.of)


def gradient_of(tensor: Tensor) -> Tensor:
    """The gradient autograd makes of `tensor`: its shape, its type."""
    kind = Kind.GRADIENTS if tensor.kind is Kind.PARAMETERS else Kind.TEMPORARIES
    return replace(tensor, name=f"∂{tensor.name}", kind=kind, trainable=False)


def summed_in_fp32(parameter: Tensor) -> Tensor:
    """The `main_grad` of a parameter in half precision."""
    gradient = gradient_of(parameter)
    return replace(gradient, name=f"{gradient.name} in fp32", dtype=DType.FP32)


def _from_host(tensor: Tensor) -> Tensor:
    return replace(tensor, name=f"{tensor.name} from the host")


def made_in_forward(tensor: Tensor) -> Tensor:
    """The gradient of `tensor` where forward makes it: a parameter's is its gradient from then on."""
    gradient = gradient_of(tensor)
    return gradient if tensor.kind is Kind.PARAMETERS else replace(gradient, kind=Kind.ACTIVATIONS)


def _bases(rows: Iterable[Row]) -> dict[Tensor, Tensor]:
    base: dict[Tensor, Tensor] = {}
    for row in rows:
        if row.is_view or row.in_place:
            for index, tensor in enumerate(row.writes):
                viewed = row.reads[index if row.in_place else 0]
                base[tensor] = base.get(viewed, viewed)
    return base


def _cached(rows: Iterable[Row]) -> set[Tensor]:
    """Casts of weights that autocast's cache holds."""
    return {tensor for row in rows for tensor in row.writes if tensor.kind is Kind.AUTOCAST_WEIGHTS}


def _name(tensor: Tensor) -> str:
    return tensor.name
