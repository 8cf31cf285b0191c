"""From what a Scenario calls a model to its config: the catalogue, a file, a hub id, or the config itself."""

from collections.abc import Mapping
from functools import lru_cache
from os.path import isdir, isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .architecture import Architecture
from .catalogue import find_checkpoint, find_model, model_named, suggested_models
from .errors import ConfigError
from .hf_config import architecture
from .hub import CONFIG_FILE, hub_config
from .json_file import read_json_object
from .scenario import Scenario, Task

if TYPE_CHECKING:
    from .quantisation import Quantisation


def load_model(model: str | Mapping[str, Any]) -> Architecture:
    """The architecture of a catalogue name, a path to a config.json or its folder, a hub id, or a config.

    Raises ConfigError where there is no such model or its config cannot be read.
    """
    if not isinstance(model, str):
        return architecture(model)
    checkpoint = find_checkpoint(model)
    if checkpoint is not None:
        raise ConfigError(
            "model",
            model,
            f"is a quantised checkpoint of {checkpoint.model}: train that one, or with adapter.kind = qlora; "
            "`gpucalc explain weights` says what the checkpoint's weights take",
        )
    return catalogue_architecture(model) if find_model(model) else architecture(load_config(model))


def load_to_run(model: str | Mapping[str, Any]) -> "tuple[Architecture, Quantisation | None]":
    """As load_model, and of a quantised checkpoint how its weights are kept."""
    if isinstance(model, str) and find_model(model):
        return catalogue_architecture(model), None
    config = load_config(model) if isinstance(model, str) else model
    if config.get("quantization_config") is None:
        return architecture(config), None
    from .quantisation.checkpoints import read_checkpoint  # few models are quantised

    return read_checkpoint(config)


def load_for(scenario: Scenario) -> Architecture:
    """The architecture of the scenario's model. Raises ConfigError for quantised weights that would be trained."""
    return load_to_run(scenario.model)[0] if scenario.task is Task.INFERENCE else load_model(scenario.model)


@lru_cache(maxsize=256)
def catalogue_architecture(name: str) -> Architecture:
    """The architecture of a model in the catalogue."""
    return architecture(model_named(name).config)


def load_config(model: str) -> Mapping[str, Any]:
    """The config of a catalogue name, a path or a hub id."""
    known = find_model(model)
    if known is not None:
        return known.config
    checkpoint = find_checkpoint(model)
    if checkpoint is not None:
        return {**model_named(checkpoint.model).config, "quantization_config": checkpoint.quantization_config}
    if isdir(model):
        return read_json_object(Path(model) / CONFIG_FILE, "model")
    if isfile(model) or model.endswith(".json"):
        return read_json_object(model, "model")
    if model.count("/") == 1 and not model.startswith((".", "/")):
        return _hub_config(model)
    return model_named(model).config


@lru_cache(maxsize=256)
def _hub_config(hub_id: str) -> Mapping[str, Any]:
    """Asked for once in a process: a search estimates the same model many times."""
    suggested = suggested_models(hub_id)
    try:
        return hub_config(hub_id, suggested)
    except ModuleNotFoundError:
        problem = f"not in the catalogue{suggested}; to read it from the hub: pip install 'gpucalc[hub]'"
        raise ConfigError("model", hub_id, problem) from None
