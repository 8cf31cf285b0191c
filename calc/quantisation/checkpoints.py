"""A config's weights as its checkpoint keeps them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calc.architecture import Architecture, Layer
from calc.catalogue import PublishedBytes, checkpoints, find_checkpoint, find_model
from calc.dtype import DType
from calc.errors import ConfigError
from calc.hf_config import architecture
from calc.kinds import Mixture
from calc.model_source import load_config
from calc.scenario import Scenario, WeightDType

from .config import DTYPES, FIELD, read_quantisation
from .formats import Quantisation
from .named import CONFIGS
from .weights import WeightRow, weight_bytes, weight_total_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointWeights:
    """What the weights of a checkpoint take, tensor by tensor."""

    quant_method: str | None
    """None: they are not quantised."""
    dtype: str
    """Of those that are not."""
    total_bytes: int
    unquantised_bytes: int
    """The same weights all in `dtype`."""
    published_bytes: PublishedBytes | None
    """Of the checkpoint's files, where the catalogue has it."""
    tensors: tuple[WeightRow, ...]

    def to_dict(self) -> dict[str, Any]:
        published = self.published_bytes
        return {
            "quant_method": self.quant_method,
            "dtype": self.dtype,
            "total_bytes": self.total_bytes,
            "unquantised_bytes": self.unquantised_bytes,
            "published_bytes": published.to_dict() if published else None,
            "tensors": [row.to_dict() for row in self.tensors],
        }


def read_checkpoint(config: Mapping[str, Any]) -> tuple[Architecture, Quantisation | None]:
    """What `config` describes, and how its weights are kept."""
    unquantised = {name: value for name, value in config.items() if name != FIELD}
    return architecture(unquantised), read_quantisation(config)


def _runs_all_experts(layer: Layer) -> bool:
    return isinstance(layer.kind.mlp, Mixture) and layer.kind.mlp.runs_all_experts


def checkpoint_weights(model: str | Mapping[str, Any]) -> CheckpointWeights:
    """Of a model named as a Scenario's, or of its config, quantised or not."""
    config = load_config(model) if isinstance(model, str) else model
    read, quantisation = read_checkpoint(config)
    dtype = _dtype(config)
    if quantisation is not None and any(_runs_all_experts(layer) for layer, _ in read.layers):
        problem = f"is not supported yet for {read.model_type}: files keep its experts together or one by one"
        raise ConfigError(f"model.{FIELD}", quantisation.method, problem)
    tensors = weight_bytes(read, quantisation, dtype=dtype)
    known = find_checkpoint(model) if isinstance(model, str) else None
    return CheckpointWeights(
        quant_method=quantisation.method if quantisation else None,
        dtype=dtype.label,
        total_bytes=weight_total_bytes(tensors),
        unquantised_bytes=weight_total_bytes(weight_bytes(read, dtype=dtype)),
        published_bytes=known.published_bytes if known else None,
        tensors=tensors,
    )


def scenario_weights(scenario: Scenario) -> CheckpointWeights:
    """Of the scenario's model, in its `weight_dtype` where it names one; what that leaves as it is, in the config's
    type, or else bf16."""
    name = scenario.weight_dtype
    if name is None:
        return checkpoint_weights(scenario.model)
    config = load_config(scenario.model) if isinstance(scenario.model, str) else scenario.model
    if config.get(FIELD) is not None:
        problem = "should be left out: the model's quantization_config says it"
        raise ConfigError("weight_dtype", name.value, problem)
    if name in UNQUANTISED:
        return checkpoint_weights({**config, "dtype": UNQUANTISED[name]})
    if name not in CONFIGS:
        raise ConfigError("weight_dtype", name.value, f"should be one of {', '.join((*UNQUANTISED, *CONFIGS))} here")
    dtype = config.get("dtype") or config.get("torch_dtype") or UNQUANTISED[WeightDType.BF16]
    return checkpoint_weights({**config, "dtype": dtype, FIELD: CONFIGS[name]})


UNQUANTISED = {WeightDType.BF16: "bfloat16", WeightDType.FP16: "float16", WeightDType.FP32: "float32"}
"""A config's `dtype`."""


def checkpoints_of(name: str) -> list[dict[str, Any]]:
    """The catalogue's quantised checkpoints of one of its models, in short."""
    model = find_model(name)
    return [
        {"hub_id": each.hub_id, "quant_method": weights.quant_method, "total_bytes": weights.total_bytes}
        | {"published_bytes": each.published_bytes.to_dict()}
        for each in checkpoints()
        if model is not None and each.model == model.name
        for weights in [checkpoint_weights(each.hub_id)]
    ]


def _dtype(config: Mapping[str, Any]) -> DType:
    """Of weights that are not quantised; fp32, PyTorch's own, where the config does not say."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in DTYPES:
        raise ConfigError("model.dtype", name, f"should be one of {', '.join(DTYPES)}")
    return DTYPES[name]
