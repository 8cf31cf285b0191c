"""Where tokens go in a mixture whose experts run in a loop: fake tensors have no values, so the loop is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor

if TYPE_CHECKING:
    from calc.scenario import Scenario


ONE_FOR_NONE = {"gpt_oss": 0}
"""Classes beside the experts, for tokens that go to none on this GPU; others have one."""


@contextmanager
def spread(scenario: Scenario, config: dict[str, Any]) -> Iterator[None]:
    """Each loop over experts finds as many tokens for each as the scenario's load says; what it reads of tensors it
    reads so, with what CUDA allocates for it (OneHot in Onehot.cpp, nonzero_out_cuda_impl in Nonzero.cu)."""
    if scenario.experts_implementation == "grouped_mm":
        yield
        return
    left: list[int] = []
    where = torch.where

    def one_hot(indices: torch.Tensor, num_classes: int) -> torch.Tensor:
        num_experts = num_classes - ONE_FOR_NONE.get(config["model_type"], 1)
        left[:] = loads(scenario.expert_load, indices.numel() // indices.shape[-1], indices.shape[-1], num_experts)
        zeros = torch.zeros((*indices.shape, num_classes), dtype=torch.int64, device=indices.device)
        return zeros.scatter_(-1, indices.unsqueeze(-1), 1)

    def nonzero(_: torch.Tensor) -> torch.Tensor:
        return torch.empty((len(left), 1), dtype=torch.int64)

    def where_true(condition: torch.Tensor, *values: Any) -> Any:
        if values:
            return where(condition, *values)
        return torch.empty((left.pop(0), 2), dtype=torch.int64).unbind(1)

    def is_false(_: torch.Tensor) -> bool:
        return False  # no expert is the one that stands for none

    with (
        patch.object(torch.nn.functional, "one_hot", one_hot),
        patch.object(torch, "where", where_true),
        patch.object(FakeTensor, "nonzero", nonzero, create=True),
        patch.object(FakeTensor, "__bool__", is_false, create=True),
    ):
        yield


def loads(load: Any, num_tokens: int, per_token: int, num_experts: int) -> list[int]:
    """The tokens of each expert that gets any."""
    if load == "worst":
        return [num_tokens] * per_token
    shares = [Fraction(1)] * num_experts if load == "even" else list(map(Fraction, load))
    routed = num_tokens * per_token
    exact = [routed * share / sum(shares) for share in shares]
    counts = [int(each) for each in exact]
    by_remainder = sorted(range(num_experts), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: routed - sum(counts)]:
        counts[index] += 1
    return [count for count in counts if count]
