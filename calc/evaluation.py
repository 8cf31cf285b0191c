"""Evaluation between training steps: forward and loss under torch.no_grad, in eval mode, and its kept logits.

The loop is Trainer's evaluation_loop with its EvalLoopContainer (transformers 5.23.0, trainer.py and
trainer_pt_utils.py):

    for x in batches:
        outputs = model(input_ids=x, labels=x, use_cache=False)   # under autocast when the precision says so
        loss, logits = outputs.loss, outputs.logits; del outputs
        kept = logits if kept is None else torch.cat((kept, logits))

The last two lines only where logits are wanted. Left out: the labels and losses that are kept beside them.
"""

from dataclasses import dataclass, replace

from .ledger import Section, Shape, Tensor
from .timeline import Program

BATCHES: Shape = ("A",)
"""All batches whose logits are kept."""
BATCHES_BEFORE: Shape = ("A-1",)
"""All but the last of them."""
MOST_DISTINCT = 3
"""From the third batch on the logits of one more are alive: those the loop's variable holds beside the kept ones."""


@dataclass(frozen=True, eq=False)
class Batches:
    """What happens around the forward passes of the first batch and of the last."""

    after_first: Program
    before_last: Program
    """What the batches between leave."""
    after_last: Program


def without_gradients(section: Section) -> Section:
    """`section` under torch.no_grad: no node, so nothing is kept for one."""
    return replace(section, rows=tuple(replace(row, gradients=(), saves=(), graph=()) for row in section.rows))


def batches(logits: Tensor, loss: Tensor, num_kept: int) -> Batches:
    """The events around the batches, of which the logits of `num_kept` are kept, three standing for more."""
    before = replace(logits, name="logits of the batches before", shape=(*BATCHES_BEFORE, *logits.shape))
    kept = replace(logits, name="logits of all batches", shape=(*BATCHES, *logits.shape))
    beside = num_kept == MOST_DISTINCT
    return Batches(
        after_first=Program([] if num_kept else [(logits, False)]),
        before_last=Program([(before, True)] if beside else []),
        after_last=Program(
            [
                *([(logits, False)] if beside else []),
                (loss, False),
                (kept, True),
                (before if beside else logits, False),
            ]
        ),
    )
