"""The question a first visit shows, filled in."""

import calc
from calc.scenario import Optimizer, Precision, Recompute

EXAMPLE = calc.Scenario(
    model="llama-3.1-8b",
    gpu="h100-sxm-80gb",
    precision=Precision.BF16,
    recompute=Recompute.FULL,
    optimizer=Optimizer.ADAMW_FUSED,
)
