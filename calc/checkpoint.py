"""What a checkpoint takes: the tensors that `torch.save(model.state_dict())` and the optimizer's write to a file.

On the GPU, nothing: both dictionaries hold the tensors themselves (torch 2.13.0, optim/optimizer.py, state_dict), and
torch.save copies them to the host storage by storage, the last copy gone before the next is made
(torch/serialization.py, _save). In a file each storage has its own bytes, not rounded up, and tied weights stand once.
Left out: names and alignment of the file's entries; the averaged weights, which neither of the two holds.
"""

from collections.abc import Iterator

from .dtype import DType
from .ledger import Kind, Tensor
from .memory import StepMemory
from .optimizers import optimizer_of
from .scenario import Optimizer

COUNTS_ON_HOST = frozenset({Optimizer.ADAMW, Optimizer.ADAMW_FOR_LOOP, Optimizer.ADAFACTOR})
"""Their `step` of each parameter is an fp32 scalar on the host, so the ledger of the GPU has none."""


SAVED = frozenset({Kind.PARAMETERS, Kind.OPTIMIZER_STATES})


def checkpoint_bytes(step: StepMemory) -> dict[str, int]:
    """Bytes of the weights, of those that are trained (what a file with an adapter alone holds), of the optimizer's
    states, and of the largest tensor: what saving needs on the host at once."""
    saved = list(_saved(step))
    weights = [(tensor, count * size) for tensor, count, size in saved if tensor.kind is Kind.PARAMETERS]
    states = sum(count * size for tensor, count, size in saved if tensor.kind is Kind.OPTIMIZER_STATES)
    return {
        "weights": sum(size for _, size in weights),
        "trained_weights": sum(size for tensor, size in weights if tensor.trainable),
        "optimizer_states": states + step.paged_bytes + _counts_on_host(step),
        "largest_tensor": max(size for _, _, size in saved),
    }


def _saved(step: StepMemory) -> Iterator[tuple[Tensor, int, int]]:
    """The tensors of both dictionaries that are on the GPU, how many there are of each, and the bytes of one."""
    for sizes, tensors, count in step.persistent():
        for tensor in tensors:
            if tensor.kind in SAVED:
                yield tensor, count, tensor.dtype.nbytes(sizes[tensor.shape])


def _counts_on_host(step: StepMemory) -> int:
    if step.plan.recipe is not None:
        return 0
    counted = 0
    for run in step.runs:
        own = (optimizer_of(tensor, step.plan, in_layer=run.part.in_layer) for tensor in run.part.trained)
        counted += run.count * sum(optimizer in COUNTS_ON_HOST for optimizer in own)
    return DType.FP32.nbytes(counted)
