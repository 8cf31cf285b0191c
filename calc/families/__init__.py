"""Families of models, by the `model_type` of their config.json.

Each is one function from a config's fields to an Architecture. A file saved by transformers leaves out what equals the
family's defaults, so each states them as its configuration class does (transformers 5.23.0,
models/<family>/configuration_<family>.py). docs/families.md shows how to add one.
"""

from collections.abc import Callable

from calc.architecture import Architecture

from . import bloom, gemma, gpt, gpt_neo, gpt_neox, gptj, llama, llama_kin, mixtures, mpt, opt, phi
from .fields import Fields

FAMILIES: dict[str, Callable[[Fields], Architecture]] = {
    "bloom": bloom.bloom,
    "gpt2": gpt.gpt2,
    "gpt_bigcode": gpt.gpt_bigcode,
    "gpt_neo": gpt_neo.gpt_neo,
    "gpt_neox": gpt_neox.gpt_neox,
    "gemma": gemma.gemma,
    "gemma2": gemma.gemma2,
    "gemma3_text": gemma.gemma3_text,
    "gptj": gptj.gptj,
    "llama": llama.llama,
    "mistral": llama.mistral,
    "mixtral": mixtures.mixtral,
    "mpt": mpt.mpt,
    "opt": opt.opt,
    "phi": phi.phi,
    "qwen2": llama.qwen2,
    "qwen2_moe": mixtures.qwen2_moe,
    "qwen3": llama.qwen3,
    "qwen3_moe": mixtures.qwen3_moe,
    "phi3": llama_kin.phi3,
    "smollm3": llama_kin.smollm3,
    "olmo": llama_kin.olmo,
    "olmo2": llama_kin.olmo2,
    "olmoe": mixtures.olmoe,
    "granite": llama_kin.granite,
    "cohere": llama_kin.cohere,
    "cohere2": llama_kin.cohere2,
    "starcoder2": llama_kin.starcoder2,
    "stablelm": llama_kin.stablelm,
    "glm": llama_kin.glm,
    "glm4": llama_kin.glm4,
    "exaone4": llama_kin.exaone4,
    "ernie4_5": llama_kin.ernie4_5,
}
