"""The types of quantised weights by the names that a scenario has for them: each a `quantization_config` in short."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from calc.dtype import DType
from calc.scenario import WeightDType

from . import forward
from .config import DTYPES, FIELD, read_quantisation
from .formats import Format, Quantisation
from .gguf import MOSTLY, block_size

FOUR_BIT: Mapping[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
DOUBLE: Mapping[str, Any] = {"bnb_4bit_use_double_quant": True}
CONFIGS: Mapping[WeightDType, Mapping[str, Any]] = {
    WeightDType.INT8: {"quant_method": "bitsandbytes", "load_in_8bit": True},
    WeightDType.NF4: FOUR_BIT,
    WeightDType.NF4_DOUBLE: {**FOUR_BIT, **DOUBLE},
    WeightDType.FP4: FOUR_BIT,
    WeightDType.FP4_DOUBLE: {**FOUR_BIT, **DOUBLE},
    WeightDType.FP8: {"quant_method": "fp8", "weight_block_size": [128, 128]},
    WeightDType.GPTQ_INT4: {"quant_method": "gptq", "bits": 4, "group_size": 128, "meta": {"quantizer": "gptqmodel"}},
    WeightDType.MXFP4: {"quant_method": "mxfp4"},
    WeightDType.AWQ_INT4: {"quant_method": "awq", "bits": 4, "group_size": 128},
}
"""NF4 and FP4 differ in what a code stands for, not in size."""
GGUF = "gguf"
COMPUTE = {dtype: name for name, dtype in DTYPES.items()}


@lru_cache(maxsize=64)
def named_quantisation(name: WeightDType, compute: DType) -> Quantisation:
    """What transformers loads with `CONFIGS[name]`; 4-bit weights are multiplied in `compute`
    (bnb_4bit_compute_dtype)."""
    if name in MOSTLY:
        kept = Format(forward=forward.as_they_are, kernel=GGUF, group=(1, block_size(MOSTLY[name])))
        return Quantisation(method=GGUF, name=name, format=kept, converts=lambda matrix, module: matrix.in_layer)
    config = CONFIGS[name]
    if config.get("load_in_4bit"):
        config = {**config, "bnb_4bit_compute_dtype": COMPUTE[compute]}
    found = read_quantisation({FIELD: config})
    assert found is not None
    return replace(found, name=name)
