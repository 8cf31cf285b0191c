"""Autocast over weights that are in half precision already, checked against the model and the other choices."""

from .architecture import Architecture
from .errors import ConfigError
from .kinds import Norm, Wiring
from .scenario import Precision, Scenario

IN_FP32 = frozenset({Norm.LAYER, Norm.LAYER_WITHOUT_BIAS})
"""F.layer_norm, of which autocast makes an fp32 operation, whatever the weights' type."""


def check_autocast(scenario: Scenario, architecture: Architecture) -> None:
    """Refuses models that autocast over bf16 weights runs in types that no ledger here has."""
    if scenario.precision is not Precision.BF16_WEIGHTS_AUTOCAST:
        return
    norms = {architecture.kind.norm, *(layer.kind.norm for layer, _ in architecture.layers)}
    if norms & IN_FP32 or architecture.wiring is Wiring.T5:
        problem = "is not supported yet with LayerNorm and with T5; choose bf16 or bf16-autocast"
        raise ConfigError("precision", scenario.precision.value, problem)
