"""What the weights of a quantised checkpoint take: each matrix of the ledger as its format stores it.

A format turns one matrix into the tensors of its layout (formats.py); config.json's `quantization_config` says which
format, and which modules it leaves as they are (config.py); weights.py applies both to an architecture's parameters;
checkpoints.py asks for a model by its name.
"""

from .checkpoints import CheckpointWeights, checkpoint_weights, checkpoints_of, scenario_weights
from .config import read_quantisation
from .formats import Matrix, Quantisation
from .weights import WeightRow, weight_bytes, weight_total_bytes

__all__ = [
    "CheckpointWeights",
    "Matrix",
    "Quantisation",
    "WeightRow",
    "checkpoint_weights",
    "checkpoints_of",
    "read_quantisation",
    "scenario_weights",
    "weight_bytes",
    "weight_total_bytes",
]
