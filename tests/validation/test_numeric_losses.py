"""The emulated losses of numbers against torch's own on the CPU: what they keep, and the types of what they give."""

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from validation.numeric_losses import NUMERIC_LOSSES, NumericLoss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", NUMERIC_LOSSES, ids=lambda function: function.__name__)
def test_it_keeps_and_gives_what_torch_does(function: Any, dtype: torch.dtype) -> None:
    labels = torch.rand(3, 5)
    seen = []
    for run in (function, lambda x, y: NumericLoss.apply(x, y, function)):
        logits = torch.randn(3, 5, dtype=dtype, requires_grad=True)
        kept: list[tuple[int, torch.dtype]] = []
        with saved_tensors_hooks(lambda x, kept=kept: kept.append((x.data_ptr(), x.dtype)) or x, lambda x: x):
            loss = run(logits, labels)
        loss.backward()
        assert logits.grad is not None
        names = {logits.data_ptr(): "logits", labels.data_ptr(): "labels"}
        seen.append((loss.dtype, logits.grad.dtype, sorted((names[place], str(kind)) for place, kind in kept)))
    assert seen[0] == seen[1]
