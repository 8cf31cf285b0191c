"""Where a step on fake CPU tensors would go other ways than on CUDA: patched, for as long as it is traced."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import transformers.initialization as initialization
import transformers.masking_utils as masking_utils
import transformers.modeling_utils as modeling_utils
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _foreach_utils
from torch.utils._foreach_utils import _foreach_supported_types

from calc.scenario import Attention
from validation.cuda_kernels import CudaFunctions
from validation.cuda_losses import losses_on_cuda


@dataclass(frozen=True, slots=True)
class HostIds:
    """Token ids in host memory, of which only the copy on the device counts."""

    shape: tuple[int, ...]

    def unsqueeze(self, dim: int) -> HostIds:
        return HostIds((1, *self.shape))

    def expand(self, num_sequences: int, _: int) -> HostIds:
        return HostIds((num_sequences, *self.shape[1:]))

    def to(self, device: torch.device) -> torch.Tensor:
        return torch.zeros(self.shape, dtype=torch.int64, device=device)


def keep_on_host(ids: dict[str, Any]) -> None:
    """PEFT keeps the ids of virtual tokens on the host."""
    ids |= {adapter: HostIds(tuple(each.shape)) for adapter, each in ids.items()}


def has_values(tensor: torch.Tensor) -> bool:
    """transformers' `is_tracing` of a tensor that can be looked at: a mask of ones is then seen to hide nothing."""
    return False


@contextmanager
def as_on_cuda(attention: Attention) -> Iterator[None]:
    """CUDA's branch of composite functions, and code as it runs outside of tracing."""
    find = masking_utils.find_packed_sequence_indices

    def find_none(position_ids: torch.Tensor) -> None:
        find(position_ids)  # outside of tracing it then looks at the values and sees that no sequences are packed

    def without_values(parameter: torch.Tensor, **_: Any) -> torch.Tensor:
        return parameter  # torch's draws again until all values lie within the bounds

    def set_data(parameter: torch.Tensor, converted: torch.Tensor) -> None:
        parameter.data = converted.data  # Module.to() would swap fake parameters, which weak references forbid

    def on_host(**_: Any) -> saved_tensors_hooks:
        return saved_tensors_hooks(
            lambda tensor: (tensor.shape, tensor.dtype), lambda kept: torch.empty(kept[0], dtype=kept[1])
        )

    def step(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, _: Any) -> None:
        optimizer.step()  # the scaler first looks at the number of infinities

    enabled = torch.is_autocast_enabled

    def is_autocast_enabled(device: str = "cpu") -> bool:
        return enabled(device)  # who names no device asks for CUDA's

    def same(mode: FakeTensorMode, _: Any) -> FakeTensorMode:
        return mode  # AveragedModel copies the model, but there is one mode

    def copied(tensor: FakeTensor, memo: dict[int, Any]) -> torch.Tensor:
        copy = tensor.detach().clone()  # views of a fake tensor's deep copy would have a storage of their own
        if isinstance(tensor, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, tensor.requires_grad)
        return memo.setdefault(id(tensor), copy)

    with (
        patch.object(FakeTensorMode, "__deepcopy__", same, create=True),
        patch.object(FakeTensor, "__deepcopy__", copied),
        patch.object(masking_utils, "find_packed_sequence_indices", find_none),
        patch.object(masking_utils, "is_tracing", has_values),
        patch.dict(initialization.TORCH_INIT_FUNCTIONS, trunc_normal_=without_values),
        patch.object(torch.utils, "swap_tensors", set_data),
        patch.object(torch, "is_autocast_enabled", is_autocast_enabled),
        patch.object(torch, "get_autocast_gpu_dtype", partial(torch.get_autocast_dtype, "cpu")),
        patch.object(_foreach_utils, "_foreach_supported_types", [*_foreach_supported_types, FakeTensor]),
        patch.object(modeling_utils, "save_on_cpu", on_host),
        patch.object(torch.amp.GradScaler, "_maybe_opt_step", step),
        CudaFunctions(attention),
        losses_on_cuda(),
    ):
        yield


@contextmanager
def only_reference_counting() -> Iterator[None]:
    """A garbage collection at an arbitrary moment would change the bytes alive from run to run."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
