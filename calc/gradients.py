"""The gradients that autograd makes of a step's tensors, by name and type."""

from dataclasses import replace
from functools import lru_cache

from .dtype import DType
from .ledger import Kind, Tensor

KEPT_GRADIENTS = 4096
"""So many are kept: all parts of a step ask for the same ones."""


@lru_cache(maxsize=KEPT_GRADIENTS)
def gradient_of(tensor: Tensor) -> Tensor:
    """The gradient autograd makes of `tensor`: its shape, its type."""
    kind = Kind.GRADIENTS if tensor.kind is Kind.PARAMETERS else Kind.TEMPORARIES
    shape = tensor.gradient_shape or tensor.shape
    return replace(tensor, name=f"∂{tensor.name}", shape=shape, kind=kind, trainable=False, gradient_shape=())


def summed_in_fp32(parameter: Tensor) -> Tensor:
    """The `main_grad` of a parameter in half precision."""
    gradient = gradient_of(parameter)
    return replace(gradient, name=f"{gradient.name} in fp32", shape=parameter.shape, dtype=DType.FP32)


@lru_cache(maxsize=KEPT_GRADIENTS)
def made_in_forward(tensor: Tensor) -> Tensor:
    """The gradient of `tensor` where forward makes it: a parameter's is its gradient from then on."""
    gradient = gradient_of(tensor)
    return gradient if tensor.kind is Kind.PARAMETERS else replace(gradient, kind=Kind.ACTIVATIONS)
