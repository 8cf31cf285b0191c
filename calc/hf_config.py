"""config.json -> Architecture."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from .architecture import Architecture
from .errors import ConfigError
from .families import FAMILIES
from .families.fields import Fields

BITSANDBYTES = "bitsandbytes"

NEAREST = 3
"""How many of the families most alike an unknown type are named first."""


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture a config.json describes.

    Raises ConfigError for a type that is not supported, a head other than the language-model head, a field that
    cannot be meant.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        near = get_close_matches(model_type, FAMILIES, n=NEAREST) if isinstance(model_type, str) else ()
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(
            "model.model_type",
            model_type,
            f"{hint}supported types: {', '.join(FAMILIES)}; docs/families.md shows how to add one",
        )
    heads = config.get("architectures")
    if heads is not None and not (isinstance(heads, list) and all(isinstance(head, str) for head in heads)):
        raise ConfigError("model.architectures", heads, "should be a list of class names")
    for head in heads or ():
        if not head.endswith(("ForCausalLM", "LMHeadModel")):
            raise ConfigError("model.architectures", head, "only the language-model head is supported yet")
    _check_not_quantised(config.get("quantization_config"))
    return FAMILIES[model_type](Fields(config))


def _check_not_quantised(quantisation: Any) -> None:
    """Raise ConfigError for a checkpoint whose weights are kept in fewer bits, and say how to ask for its training."""
    if quantisation is None:
        return
    if not isinstance(quantisation, Mapping):
        raise ConfigError("model.quantization_config", quantisation, "should be an object or null")
    # Before transformers named the method in it, bitsandbytes' was the only one.
    method = quantisation.get("quant_method", BITSANDBYTES)
    if method == BITSANDBYTES and not quantisation.get("load_in_8bit"):
        raise ConfigError(
            "model.quantization_config.quant_method",
            method,
            "quantized weights are not supported yet; for QLoRA leave quantization_config out: adapter.kind = qlora",
        )
    raise ConfigError(
        "model.quantization_config.quant_method",
        method,
        "quantized weights are not supported yet; leave quantization_config out to train them unquantized",
    )
