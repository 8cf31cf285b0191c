"""The optimizers of a training job, by the Scenario's names."""

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch

IN_LAYER = re.compile(r"\.(h|layers?|blocks)\.\d+\.")
"""Names of the parameters of a model's layers."""

Optimizers = Callable[[torch.nn.Module], list[torch.optim.Optimizer]]


def of_all(optimizer: Callable[..., torch.optim.Optimizer], **options: Any) -> Optimizers:
    """One optimizer for all trained parameters."""
    return lambda model: [optimizer([p for p in model.parameters() if p.requires_grad], **options)]


def muon(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """torch.optim.Muon takes matrices only, and is meant for hidden layers: AdamW gets the rest, as its page shows."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = [p for name, p in trained.items() if p.ndim == 2 and IN_LAYER.search(name)]
    rest = [p for p in trained.values() if not any(p is other for other in hidden)]
    optimizers = {torch.optim.Muon: hidden, partial(torch.optim.AdamW, foreach=True): rest}
    return [optimizer(parameters) for optimizer, parameters in optimizers.items() if parameters]


def from_library(module: str, name: str) -> Optimizers:
    """An optimizer of a library that is imported when it is asked for."""
    return lambda model: of_all(getattr(import_module(module), name))(model)


def lion(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """lion-pytorch's, which a machine with a GPU may lack."""
    from lion_pytorch import Lion

    return of_all(Lion)(model)


OPTIMIZERS: dict[str, Optimizers] = {
    "adamw": of_all(torch.optim.AdamW, foreach=True),
    "adamw-fused": of_all(torch.optim.AdamW, fused=True),
    "adamw-for-loop": of_all(torch.optim.AdamW, foreach=False, fused=False),
    "adamw-8bit": from_library("bitsandbytes.optim", "AdamW8bit"),
    "paged-adamw-8bit": from_library("bitsandbytes.optim", "PagedAdamW8bit"),
    "sgd": of_all(torch.optim.SGD, foreach=True),
    "sgd-momentum": of_all(torch.optim.SGD, foreach=True, momentum=0.9),
    "sgd-nesterov": of_all(torch.optim.SGD, foreach=True, momentum=0.9, nesterov=True),
    "adafactor": of_all(torch.optim.Adafactor),
    "lion": lion,
    "muon": muon,
}
