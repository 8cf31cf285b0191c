"""Which models Megatron-LM's block (blocks/megatron.py) stands for."""

from dataclasses import replace

from .architecture import Architecture
from .errors import ConfigError
from .kinds import Activation, Wiring
from .plan import Plan

GELUS = frozenset({Activation.GELU, Activation.GELU_NEW, Activation.GELU_PYTORCH_TANH})


def as_megatron(architecture: Architecture, plan: Plan) -> Architecture:
    """`architecture` with its layers wired as Megatron's. Raises ConfigError where the paper's block is another."""
    if plan.numerics.autocast:
        raise ConfigError(
            "precision", plan.precision.value, "should be bf16, fp16, fp32 or a recipe with implementation = megatron"
        )
    for layer, _ in architecture.layers:
        if layer.kind.wiring is not Wiring.GPT2 or layer.kind.activation not in GELUS:
            raise ConfigError("implementation", "megatron", "is for GPT's block with GELU; choose transformers")
    layers = tuple(
        (replace(layer, kind=replace(layer.kind, wiring=Wiring.MEGATRON)), count)
        for layer, count in architecture.layers
    )
    return replace(architecture, kind=replace(architecture.kind, wiring=Wiring.MEGATRON), layers=layers)
