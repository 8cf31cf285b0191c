"""Python's local variables, as far as they decide when an optimizer's temporaries are freed."""

from collections.abc import Iterable

from .ledger import Tensor
from .lifetimes import Event
from .timeline import Program


class Frame:
    """The variables of one running function. What a name held is freed when the name is bound again or dropped,
    unless another name holds it too."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._events: list[Event] = []

    def __getitem__(self, name: str) -> Tensor:
        return self._held[name]

    def make(self, name: str, tensor: Tensor) -> None:
        """`name = <an operation that allocates tensor>`."""
        self._events.append((tensor, True))
        self.bind(name, tensor)

    def bind(self, name: str, tensor: Tensor) -> None:
        """`name = <tensor, which exists>`."""
        previous = self._held.get(name)
        self._held[name] = tensor
        self._release(previous)

    def drop(self, *names: str) -> None:
        """`del names`, the end of a callee's frame."""
        for name in names:
            self._release(self._held.pop(name))

    def drop_all(self) -> None:
        """The function returns."""
        self.drop(*list(self._held))

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that something outside of the function holds."""
        self._events += [(tensor, True) for tensor in tensors]

    def moment(self, *tensors: Tensor) -> None:
        """Tensors of one expression, alive together."""
        self._events += [*((tensor, True) for tensor in tensors), *((tensor, False) for tensor in tensors)]

    def program(self) -> Program:
        """What happened since the last call."""
        events, self._events = self._events, []
        return Program(events)

    def _release(self, tensor: Tensor | None) -> None:
        # Equal layers have equal tensors: it is the object that is held.
        if tensor is not None and not any(held is tensor for held in self._held.values()):
            self._events.append((tensor, False))
