"""From what a Scenario calls a model to its config: the catalogue, a file, a hub id, or the config itself."""

from collections.abc import Mapping
from functools import lru_cache
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

from .architecture import Architecture
from .catalogue import find_model, model_named
from .errors import ConfigError
from .hf_config import architecture
from .json_file import read_json_object

CONFIG_FILE = "config.json"


def load_model(model: str | Mapping[str, Any]) -> Architecture:
    """The architecture of a catalogue name, a path to a config.json or its folder, a hub id, or a config.

    Raises ConfigError where there is no such model or its config cannot be read.
    """
    if not isinstance(model, str):
        return architecture(model)
    return catalogue_architecture(model) if find_model(model) else architecture(load_config(model))


@lru_cache(maxsize=256)
def catalogue_architecture(name: str) -> Architecture:
    """The architecture of a model in the catalogue."""
    return architecture(model_named(name).config)


def load_config(model: str) -> Mapping[str, Any]:
    """The config of a catalogue name, a path or a hub id."""
    known = find_model(model)
    if known is not None:
        return known.config
    if isdir(model):
        return read_json_object(Path(model) / CONFIG_FILE, "model")
    if isfile(model) or model.endswith(".json"):
        return read_json_object(model, "model")
    if model.count("/") == 1 and not model.startswith((".", "/")):
        return _hub_config(model)
    return model_named(model).config


def _hub_config(hub_id: str) -> Mapping[str, Any]:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return model_named(hub_id).config
    try:
        return read_json_object(hf_hub_download(hub_id, CONFIG_FILE), "model")
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ConfigError(
            "model", hub_id, f"is not in the catalogue and could not be read from the hub: {first_line}"
        ) from None
