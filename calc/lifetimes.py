"""When each tensor of a section is allocated and freed, as PyTorch's reference counts decide it.

Forward: an operation's output lives until the last operation (or Python frame) that reads it, or until the backward
of the node that saved it.
Backward (torch/csrc/autograd/engine.cpp): nodes run in the reverse order of their creation; a node's saved tensors
and the gradient it
received are freed when it has run; gradients that meet are added in place; a parameter's gradient stays.
A checkpointed region keeps what it reads from outside, and runs again, as far as the last tensor a node wants (early
stop), when the first of its
nodes asks for one (torch/utils/checkpoint.py, use_reentrant=False).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from .ledger import Gradient, Kind, Region, Row, Section, Tensor, requires_gradient, saved_for_backward

HIDDEN_STATES = "hidden_states"
"""What layers and head call their input."""

NEXT = "next "
"""Before the name of a section's output: what the next part calls its input."""

OWNED = frozenset({Kind.PARAMETERS, Kind.BUFFERS})
"""What the model owns, whoever reads it."""

Event = tuple[Tensor, bool]
"""A tensor, and whether it is allocated (True) or freed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a section's lifetimes depend on beside its rows."""

    input_required: bool
    """The section's input needs a gradient."""
    leaves: frozenset[Tensor] = frozenset()
    """Tensors made to require a gradient; they live until backward ends."""
    held_input: Tensor | None = None
    """What the input is called outside, where a Python frame holds it through forward: not freed here, unless a node
    here keeps it."""
    gradients_exist: bool = False
    """Parameters have gradients already, of an earlier micro-batch: new ones are added to them."""
    released: frozenset[Tensor] = frozenset()
    """Tensors of earlier sections that this one is the last to read."""
    exported: frozenset[Tensor] = frozenset()
    """Tensors of this section that later ones read, and free."""
    freed_in_backward: frozenset[Tensor] = frozenset()
    """Tensors of earlier sections that the nodes of this one are the last to need."""
    kept: frozenset[Tensor] = frozenset()
    """Of the exported, those that nodes of later sections keep: freed when this section's backward begins."""
    waiting: frozenset[Tensor] = frozenset()
    """Tied parameters whose gradient waits for the one of an earlier section."""
    meeting: frozenset[Tensor] = frozenset()
    """Tied parameters whose gradient meets the waiting one of a later section."""
    meets_view: bool = False
    """The waiting gradient is a view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """One part of a section: its events in order, and the rows it runs again."""

    forward: tuple[Event, ...]
    forward_end: tuple[Event, ...]
    """When autocast exits at the end of forward: its cached weights that no node saved."""
    backward: tuple[Event, ...]
    saved: frozenset[Tensor]
    """Storages saved-tensor hooks see, parameters left out: those this section makes, and its input."""
    saved_from_outside: frozenset[Tensor]
    """The same, made by other sections."""
    offloaded: frozenset[Tensor]
    """What is kept in host memory."""
    rerun: tuple[Row, ...]
    required: frozenset[Tensor]
    """Tensors and parameters that get gradients."""
    output_required: bool
    kept_from_outside: frozenset[Tensor]
    """Tensors of other sections, and the input, that nodes of this section keep."""


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
    required: set[Tensor] = field(init=False)
    base: dict[Tensor, Tensor] = field(init=False)
    """For a view, the tensor whose storage it shares."""
    local: set[Tensor] = field(init=False)
    """Storages this section allocates and frees."""
    alias: dict[Tensor, Tensor] = field(init=False)
    """What an event calls a tensor: the output is the next part's input; what no node keeps is a temporary."""
    events: list[Event] = field(init=False, default_factory=list)

    def build(self) -> Lifetimes:
        section, context = self.section, self.context
        roots = {section.input} if section.input and context.input_required else set()
        self.required = requires_gradient(section.rows, roots | context.leaves)
        self.base = _bases(section.rows)
        written = {self._storage(tensor) for row in section.rows for tensor in (*row.writes, *self._made(row))}
        self.local = (written | context.released) - context.exported
        if section.input is not None:
            self.local.add(section.input)
        self.local.discard(self._storage(section.output))
        needed = self._needed_outside_regions()
        self.alias = self._names(needed)
        forward_end = tuple((tensor, False) for tensor in sorted(_cached(section.rows) - needed.keys(), key=_name))
        forward = self._forward(needed)
        rerun: list[Row] = []
        backward = self._backward(needed, rerun)
        seen = self._seen_by_hooks()
        own = seen & (written | {section.input})
        return Lifetimes(
            forward=forward,
            forward_end=forward_end,
            backward=backward,
            saved=frozenset(own),
            saved_from_outside=frozenset(seen - own),
            offloaded=frozenset[Tensor]().union(*map(self._offloaded, section.regions)),
            rerun=tuple(rerun),
            required=frozenset(self.required),
            output_required=section.output in self.required,
            kept_from_outside=frozenset(needed.keys() - written),
        )

    def _names(self, needed: dict[Tensor, int]) -> dict[Tensor, Tensor]:
        section = self.section
        saved = needed.keys() | self.context.kept.union(*(self._saved(row) for row in section.rows))
        written = {tensor for row in section.rows for tensor in row.writes}
        names = {
            tensor: replace(tensor, kind=Kind.TEMPORARIES)
            for tensor in written - saved - self.context.exported
            if tensor.kind is Kind.ACTIVATIONS
        }
        if section.input is not None and self.context.held_input is not None:
            names[section.input] = self.context.held_input
        passed_on = replace(section.output, name=section.output.name.removeprefix(NEXT))
        names[section.output] = passed_on
        if section.input is None:
            passed_on = replace(passed_on, name=HIDDEN_STATES)
        names[gradient_of(section.output)] = gradient_of(passed_on)
        return names

    def _storage(self, tensor: Tensor) -> Tensor:
        return self.base.get(tensor, tensor)

    def _saved(self, row: Row) -> set[Tensor]:
        """Storages the node of `row` keeps, parameters left out."""
        saved = saved_for_backward(row, self.required)
        return {self._storage(tensor) for tensor in saved if tensor.kind is not Kind.PARAMETERS}

    def _made(self, row: Row) -> list[Tensor]:
        """Gradients that `row` makes in forward already."""
        wanted = [gradient.of for gradient in row.gradients if gradient.in_forward and gradient.of in self.required]
        return list(map(made_in_forward, wanted))

    def _region(self, index: int) -> Region | None:
        return next((region for region in self.section.regions if region.start <= index < region.stop), None)

    def _region_inputs(self, region: Region) -> set[Tensor]:
        rows = self.section.rows[region.start : region.stop]
        written = {tensor for row in rows for tensor in row.writes}
        read = {self._storage(tensor) for row in rows for tensor in row.reads if tensor.kind not in OWNED}
        return read - written

    def _saving_rows(self, region: Region) -> list[int]:
        return [index for index in range(region.start, region.stop) if self._has_saves(self.section.rows[index])]

    def _has_saves(self, row: Row) -> bool:
        return bool(saved_for_backward(row, self.required))

    def _needed_outside_regions(self) -> dict[Tensor, int]:
        """Each storage kept through forward, with the row whose backward frees it."""
        needed: dict[Tensor, int] = {}
        for index in reversed(range(len(self.section.rows))):
            if self._region(index) is None:
                needed.update(dict.fromkeys(self._saved(self.section.rows[index]), index))
        for region in self.section.regions:
            saving = self._saving_rows(region)
            if saving:
                for tensor in self._region_inputs(region) - self._offloaded(region):
                    needed[tensor] = min(saving[0], needed.get(tensor, saving[0]))
        return needed

    def _seen_by_hooks(self) -> set[Tensor]:
        """Saved-tensor hooks of the caller do not see inside a checkpointed region, but see what it keeps."""
        seen: set[Tensor] = set()
        for index, row in enumerate(self.section.rows):
            if self._region(index) is None:
                seen |= self._saved(row).union(row.graph)
                seen |= self._saved(row)
                seen.update(self._made(row) if row.hooks_see_gradients else ())
        for region in self.section.regions:
            if not region.offloaded:  # else hooks nearer to it see its tensors
                seen |= self._saved_by_checkpoint(region)
        return seen

    def _saved_by_checkpoint(self, region: Region) -> set[Tensor]:
        """Of a region's inputs those that are saved as autograd saves; others its closure holds."""
        arguments = {self._storage(tensor) for tensor in region.arguments}
        return self._region_inputs(region) & (self.required | arguments)

    def _offloaded(self, region: Region) -> set[Tensor]:
        return self._saved_by_checkpoint(region) if region.offloaded else set()

    def _forward(self, needed: dict[Tensor, int]) -> tuple[Event, ...]:
        self.events = []
        held = {self.section.input} if self.section.input and self.context.held_input else set[Tensor]()
        rows = tuple(self._without_graph(index) for index in range(len(self.section.rows)))
        self._run(rows, keep=needed.keys() | _cached(self.section.rows) | held)
        return tuple(self.events)

    def _without_graph(self, index: int) -> Row:
        """A row's first run: inside a checkpoint nodes keep nothing."""
        row = self.section.rows[index]
        return replace(row, graph=()) if row.graph and self._region(index) is not None else row

    def _run(self, rows: tuple[Row, ...], keep: Iterable[Tensor]) -> None:
        """Allocate what `rows` write; free what no later row of them reads and `keep` does not hold."""
        last_use: dict[Tensor, int] = {}
        for index, row in enumerate(rows):
            for tensor in (*row.writes, *row.reads, *row.graph):
                last_use[self._storage(tensor)] = index
        dying: dict[int, list[Tensor]] = {}
        for tensor, index in last_use.items():
            if tensor in self.local and tensor not in keep:
                dying.setdefault(index, []).append(tensor)
        for index, row in enumerate(rows):
            self._allocate(tensor for tensor in row.writes if self._storage(tensor) is tensor)
            self._allocate(self._made(row))
            self._moment(row.temporaries)
            self._free(dying.get(index, ()))

    def _backward(self, needed: dict[Tensor, int], rerun: list[Row]) -> tuple[Event, ...]:
        section = self.section
        self.events = []
        self._free(sorted(self.context.kept, key=_name))
        freed_by: dict[int, list[Tensor]] = {}
        for tensor, index in needed.items():
            if tensor in self.local | self.context.freed_in_backward and tensor not in self.context.kept:
                freed_by.setdefault(index, []).append(tensor)
        buffers: dict[Tensor, _Pending] = {}
        if section.output in self.required:
            buffers[section.output] = _Pending(_Storage(gradient_of(section.output)), viewed=False)
        started: set[Region] = set()
        for index in reversed(range(len(section.rows))):
            row = section.rows[index]
            region = self._region(index)
            if region is not None and region not in started and self._has_saves(row):
                started.add(region)
                self._rerun(region, rerun, freed_by)
            self._node(row, buffers, freed_by.get(index, ()), checkpointed=region is not None)
        if section.input is None:
            for leaf in buffers.values():
                self._release(leaf.storage)
        elif section.input in buffers:
            self._pass_on(buffers[section.input].storage.tensor, gradient_of(section.input))
        return tuple(self.events)

    def _pass_on(self, made: Tensor, gradient: Tensor) -> None:
        """The part before knows the gradient of its output by one name, whatever buffer a kernel wrote it to."""
        if made not in (gradient, gradient_of(self.section.output)):
            self.events = [(gradient if tensor == made else tensor, allocated) for tensor, allocated in self.events]

    def _rerun(self, region: Region, rerun: list[Row], freed_by: dict[int, list[Tensor]]) -> None:
        """Run the region's forward again, as far as the last tensor a node saves."""
        rows, saving = self.section.rows, self._saving_rows(region)
        last = saving[-1]
        saves_own_output = not self._saved(rows[last]).isdisjoint(rows[last].writes)
        again = rows[region.start : last + saves_own_output]
        rerun.extend(again)
        offloaded = self._offloaded(region)
        self.alias |= {tensor: _from_host(tensor) for tensor in offloaded}
        self._allocate(sorted(offloaded, key=_name))
        outside = self._region_inputs(region) - offloaded
        wanted: dict[Tensor, int] = {}
        for index in reversed(saving):
            wanted.update(dict.fromkeys(self._saved(rows[index]) - outside, index))
        local, self.local = (
            self.local,
            {tensor for row in again for tensor in row.writes if self._storage(tensor) is tensor},
        )
        cached = _cached(again)
        left = rows[region.start + len(again) : region.stop]
        unread = {self._storage(tensor) for row in left for tensor in (*row.reads, *row.graph)}
        self._run(again, keep=wanted.keys() | cached | unread)
        self._free(sorted((cached | (unread & self.local)) - wanted.keys(), key=_name))
        self.local = local
        self._free(sorted(offloaded - wanted.keys(), key=_name))
        for tensor, index in wanted.items():
            freed_by.setdefault(index, []).append(tensor)

    def _node(self, row: Row, buffers: dict[Tensor, _Pending], saved: Iterable[Tensor], *, checkpointed: bool) -> None:
        """Run one autograd node."""
        received = {index: buffers.pop(tensor).storage for index, tensor in enumerate(row.writes) if tensor in buffers}
        if row.overwrites_saved or not received:
            self._free(saved)
            saved = ()
        if not received:
            return
        wanted = [gradient for gradient in row.gradients if gradient.of in self.required]
        made = [self._gradient(gradient, received) for gradient in wanted]
        self._moment(row.backward_prelude)
        self._moment(row.backward_temporaries)
        if checkpointed:
            self._free(saved)  # what a checkpoint hands out only the node's own call holds
        for gradient in wanted:
            if gradient.unreduced is not None:
                self._allocate([gradient_of(gradient.of)])
                self._free([gradient.unreduced])
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

    def _gradient(self, gradient: Gradient, received: Mapping[int, _Storage]) -> _Storage:
        if gradient.passes:
            received[gradient.output].holders += 1
            return received[gradient.output]
        if gradient.in_forward:
            return _Storage(made_in_forward(gradient.of))
        storage = _Storage(gradient_of(gradient.of))
        self._allocate([gradient.unreduced or storage.tensor])
        return storage

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
        if parameter in context.waiting:
            return
        if parameter in context.meeting:
            waiting = _Pending(_Storage(gradient_of(parameter)), context.meets_view)
            new = self._meet(waiting, new)
        if context.gradients_exist:
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


def gradient_of(tensor: Tensor) -> Tensor:
    """The gradient autograd makes of `tensor`: its shape, its type."""
    kind = Kind.GRADIENTS if tensor.kind is Kind.PARAMETERS else Kind.TEMPORARIES
    return replace(tensor, name=f"∂{tensor.name}", kind=kind, trainable=False)


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
