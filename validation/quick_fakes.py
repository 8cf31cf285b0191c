"""FakeTensorMode with a cheaper cache: torch's asks seventeen things of every tensor, most of which never differ here.

Written for torch 2.13.0 (torch/_subclasses/fake_tensor.py). All tensors of a trace are dense, strided and of one mode.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


class QuickFakeTensorMode(FakeTensorMode):
    """The same tensors."""

    def _prep_args_for_hash(
        self, result: list[object], args: Mapping[str, object] | Iterable[object], state: Any, id_hashed_objects: Any
    ) -> None:
        """Appends all that an operation's result depends on; other than plain tensors, lists and numbers is torch's."""
        if isinstance(args, dict):
            result.append(tuple(args))
            args = args.values()
        for arg in args:
            if type(arg) is FakeTensor and arg.constant is None:
                result += (
                    arg.dtype,
                    arg.shape,
                    arg.stride(),
                    arg.storage_offset(),
                    arg.untyped_storage().nbytes(),
                    arg.requires_grad,
                    arg.fake_device,
                )
            elif isinstance(arg, list | tuple):
                result += (type(arg), len(arg))
                self._prep_args_for_hash(result, arg, state, id_hashed_objects)
            elif type(arg) in (int, float, bool, str, type(None)):
                result += (type(arg), arg)
            else:
                super()._prep_args_for_hash(result, [arg], state, id_hashed_objects)
