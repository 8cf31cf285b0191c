"""The training step that is modelled: one loop for the tracer and for the measurement on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from validation.models import Job


class Phase(StrEnum):
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


def training_step(job: Job, during: Callable[[Phase], AbstractContextManager[None]]) -> None:
    """One optimizer step of `job`, each phase inside `during(phase)`; forward ends with `outputs` still held."""
    for _ in range(job.gradient_accumulation_steps):
        with during(Phase.FORWARD):
            outputs = forward(job)
        with during(Phase.BACKWARD):
            loss = outputs.loss / job.gradient_accumulation_steps
            del outputs  # as Trainer does: the logits are not held during backward
            if job.scaler is None:
                loss.backward()
            else:
                job.scaler.scale(loss).backward()
            del loss
    with during(Phase.OPTIMIZER):
        if job.scaler is None:
            job.optimizer.step()
        else:
            job.scaler.step(job.optimizer)
            job.scaler.update()
        job.optimizer.zero_grad()


def forward(job: Job) -> Any:
    """The model's outputs, loss included, for one micro-batch."""
    with job.autocast():
        return job.model(input_ids=job.input_ids, labels=job.input_ids, use_cache=False)
