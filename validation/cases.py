"""The cases that are traced and measured, written down before either: named suites of scenarios.

Imports nothing of calc, so that a machine with a GPU needs no pydantic: a case's scenario is the Scenario as JSON,
without the fields that keep their default.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

CATALOGUE = Path(__file__).parents[1] / "calc" / "catalogue" / "models.json"

STEP: dict[str, Any] = {
    "task": "training",
    "implementation": "transformers",
    "micro_batch_size": 1,
    "sequence_length": None,
    "gradient_accumulation_steps": 1,
    "precision": "bf16-autocast",
    "optimizer": "adamw",
    "attention": "auto",
    "recompute": "none",
    "recompute_interval": 1,
    "recompute_group_size": 1,
    "loss": "cross-entropy",
    "adapter": None,
    "dropout": None,
}
ADAPTER: dict[str, Any] = {
    "kind": "lora",
    "rank": 8,
    "alpha": 16.0,
    "dropout": 0.0,
    "target_modules": None,
    "dtype": "fp32",
}
"""The Scenario's defaults; a test holds them equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One scenario of a suite.

    `holdout`: its errors are reported apart and not looked at while formulas are tuned.
    `history`: the allocator's events are kept, for replay.
    """

    id: str
    scenario: dict[str, Any]
    holdout: bool = False
    history: bool = False


def case(
    model: str | dict[str, Any],
    batch: int,
    sequence: int,
    *,
    holdout: bool = False,
    history: bool = False,
    **fields: Any,
) -> Case:
    scenario = {"model": model, "micro_batch_size": batch, "sequence_length": sequence} | fields
    return Case(id=case_id(scenario), scenario=scenario, holdout=holdout, history=history)


def case_id(scenario: dict[str, Any]) -> str:
    """The scenario as the page's address has it: `gpt2?micro_batch_size=8&sequence_length=1024&attention=eager`."""
    model = scenario["model"]
    name = model if isinstance(model, str) else config_name(model)
    return f"{name}?{urlencode(list(_dotted(scenario, STEP)), safe=',')}"


def config_name(config: dict[str, Any]) -> str:
    """A name for a config that is not the catalogue's: its own, or its type with a digest."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return config.get("_name_or_path") or f"{config['model_type']}-{digest[:8]}"


def config_of(scenario: dict[str, Any]) -> dict[str, Any]:
    """The config of the scenario's model: a name in the catalogue, or the config itself."""
    model = scenario["model"]
    return catalogue()[model]["config"] if isinstance(model, str) else model


def cut(model: str, layers: int) -> dict[str, Any]:
    """The catalogue's `model` with fewer layers, which its name says."""
    config = config_of({"model": model})
    name = f"{model}-{layers}-of-{config['num_hidden_layers']}-layers"
    return config | {"num_hidden_layers": layers, "_name_or_path": name}


def as_object(scenario: dict[str, Any]) -> Any:
    """The scenario with all its fields as attributes, as `build_job` reads them."""
    fields = STEP | scenario
    if fields["adapter"] is not None:
        fields["adapter"] = SimpleNamespace(**ADAPTER | fields["adapter"])
    return SimpleNamespace(**fields)


@cache
def catalogue() -> dict[str, Any]:
    return json.loads(CATALOGUE.read_text(encoding="utf-8"))


def _dotted(fields: dict[str, Any], order: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in order:
        value = fields.get(name)
        if isinstance(value, dict):
            yield from _dotted(value, ADAPTER, f"{name}.")
        elif value is not None:
            yield prefix + name, ",".join(value) if isinstance(value, list | tuple) else value


LORA = {"kind": "lora", "rank": 16}
EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WIDE_LORA = {"kind": "lora", "rank": 64, "dropout": 0.1, "target_modules": EVERY_LINEAR}

GPT2_124M = ("gpt2", 8, 1024)
LLAMA_2_7B = ("llama-2-7b", 1, 4096)

BIASED = cut("llama-3.2-1b", 2) | {
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": False,
    "_name_or_path": "llama-3.2-1b-2-of-16-layers-biased-untied",
}

TRACES = [
    # The two tasks of record.
    case(*GPT2_124M, attention="eager"),
    case(*LLAMA_2_7B, attention="flash"),
    case(*LLAMA_2_7B, attention="flash", optimizer="adamw-fused"),
    # One family after the other: every precision, attention and recomputation, then the other knobs.
    case("gpt2", 4, 512, attention="eager", precision="fp32", optimizer="adamw-for-loop"),
    case("gpt2", 4, 512, attention="eager", precision="bf16", recompute="full"),
    case("gpt2", 4, 512, attention="eager", precision="fp16", recompute="selective", dropout=0.0),
    case("gpt2", 4, 512, attention="flash", precision="fp16-autocast", optimizer="sgd-momentum"),
    case("gpt2", 4, 512, attention="flash", adapter=LORA, recompute="full"),
    case("gpt2-medium", 2, 1024, attention="flash", gradient_accumulation_steps=4, dropout=0.0),
    case("gpt2-medium", 2, 1024, attention="eager", recompute="selective", optimizer="adamw-fused"),
    case("llama-3.2-1b", 2, 2048, attention="flash"),
    case("llama-3.2-1b", 2, 1024, attention="eager", precision="fp32", recompute="full", optimizer="sgd"),
    case("llama-3.2-1b", 4, 512, attention="eager", precision="fp16", optimizer="adamw-for-loop"),
    case("llama-3.2-1b", 2, 1024, attention="flash", precision="fp16-autocast", gradient_accumulation_steps=2),
    case("llama-3.1-8b", 1, 4096, attention="flash", precision="bf16", recompute="full"),
    case("llama-3.1-8b", 1, 2048, attention="flash", precision="bf16", adapter=LORA),
    case("llama-2-7b", 2, 1024, attention="flash", precision="bf16", recompute="selective", optimizer="sgd"),
    case("smollm2-135m", 8, 512, attention="eager", precision="bf16", dropout=0.1),
    case("smollm2-360m", 4, 1024, attention="flash", recompute="full", gradient_accumulation_steps=2),
    case("tinyllama-1.1b", 4, 2048, attention="flash", adapter=WIDE_LORA, recompute="full"),
    case("mistral-7b-v0.3", 1, 4096, attention="flash", precision="bf16"),
    case("mistral-7b-v0.1", 1, 2048, attention="flash", recompute="full", optimizer="adamw-fused"),
    case("mistral-7b-v0.3", 1, 1024, attention="eager", precision="fp16-autocast", adapter=WIDE_LORA),
    case("mistral-7b-v0.3", 2, 512, attention="eager", precision="fp32", recompute="selective", optimizer="sgd"),
    case("mistral-7b-v0.3", 1, 1024, attention="flash", precision="fp16", optimizer="sgd-momentum"),
    case("qwen2.5-0.5b", 4, 1024, attention="flash"),
    case("qwen2.5-0.5b", 2, 512, attention="eager", precision="fp32", optimizer="adamw-for-loop"),
    case("qwen2.5-0.5b", 2, 1024, attention="eager", precision="bf16", gradient_accumulation_steps=4),
    case("qwen2.5-7b", 1, 2048, attention="flash", precision="bf16", recompute="full", optimizer="adamw-fused"),
    case("qwen2.5-7b", 1, 2048, attention="flash", precision="fp16", adapter=LORA, recompute="selective"),
    case("qwen2.5-0.5b", 2, 1024, attention="flash", precision="fp16-autocast", recompute="full"),
    case("qwen3-0.6b", 4, 1024, attention="flash"),
    case("qwen3-0.6b", 2, 512, attention="eager", precision="fp32", gradient_accumulation_steps=2, optimizer="sgd"),
    case("qwen3-0.6b", 2, 1024, attention="eager", precision="bf16", recompute="selective"),
    case("qwen3-0.6b", 2, 1024, attention="flash", precision="fp16", optimizer="adamw-for-loop"),
    case("qwen3-0.6b", 2, 1024, attention="eager", precision="fp16-autocast", adapter={**LORA, "dtype": "base"}),
    case("qwen3-8b", 1, 4096, attention="flash", precision="bf16", recompute="full", adapter=WIDE_LORA),
    # A sliding window that is shorter than the sequence; biases everywhere; an adapter on fp32.
    case("mistral-7b-v0.1", 1, 5000, attention="eager", precision="bf16"),
    case(BIASED, 3, 100, attention="flash"),
    case("gpt2", 2, 256, attention="eager", precision="fp32", adapter=LORA, gradient_accumulation_steps=2),
    # Held out: chosen before the first of them was traced.
    case("distilgpt2", 3, 777, attention="eager", recompute="full", optimizer="sgd-momentum", holdout=True),
    case("gpt2-large", 1, 1000, attention="flash", precision="bf16", adapter=LORA, holdout=True),
    case("llama-3.2-3b", 1, 3000, attention="flash", gradient_accumulation_steps=3, holdout=True),
    case("smollm2-1.7b", 5, 333, attention="eager", precision="fp16-autocast", recompute="selective", holdout=True),
    case("mistral-nemo-12b", 1, 1025, attention="flash", precision="bf16", optimizer="adamw-for-loop", holdout=True),
    case("qwen2.5-3b", 3, 700, attention="flash", precision="fp16-autocast", adapter=WIDE_LORA, holdout=True),
    case("qwen3-1.7b", 2, 1111, attention="eager", precision="bf16", recompute="full", holdout=True),
    case("qwen3-4b", 1, 2049, attention="flash", optimizer="adamw-fused", recompute="selective", holdout=True),
]

EACH_KNOB: list[dict[str, Any]] = [
    {"attention": "flash", "history": True},
    {"attention": "auto"},
    {"attention": "eager", "precision": "fp32"},
    {"attention": "flash", "precision": "bf16", "history": True},
    {"attention": "flash", "precision": "fp16-autocast"},
    {"attention": "flash", "optimizer": "adamw-fused"},
    {"attention": "flash", "optimizer": "adamw-for-loop"},
    {"attention": "flash", "optimizer": "sgd"},
    {"attention": "flash", "recompute": "full", "history": True},
    {"attention": "flash", "recompute": "selective"},
    {"attention": "flash", "adapter": LORA},
    {"attention": "flash", "dropout": 0.2},
    {"attention": "flash", "gradient_accumulation_steps": 4},
]

FIRST = [
    case(*GPT2_124M, attention="eager", history=True),
    case(*LLAMA_2_7B, attention="flash", history=True),
    case(*LLAMA_2_7B, attention="flash", optimizer="adamw-fused"),
    # Each knob alone, on a small model of either wiring.
    *(
        case(model, batch, sequence, **knob)
        for model, batch, sequence in (("gpt2", 8, 1024), ("llama-3.2-1b", 4, 1024))
        for knob in EACH_KNOB
    ),
    # The other families, and depth cut where the whole model is not the question.
    case("qwen2.5-0.5b", 8, 1024, attention="flash", history=True),
    case("qwen2.5-7b", 1, 2048, attention="flash", precision="bf16", recompute="full"),
    case("qwen3-0.6b", 8, 1024, attention="flash", history=True),
    case("qwen3-8b", 1, 2048, attention="flash", precision="bf16", adapter=LORA),
    case(cut("mistral-7b-v0.3", 8), 2, 2048, attention="flash"),
    case(cut("llama-3.1-8b", 8), 2, 2048, attention="flash", precision="bf16"),
    case("smollm2-135m", 16, 1024, attention="eager", precision="bf16"),
    # Sure not to fit: the run must go on after it.
    case("qwen2.5-14b", 1, 4096, attention="flash"),
]

HOLDOUT = [
    case("distilgpt2", 16, 777, attention="eager", optimizer="adamw-fused", holdout=True),
    case("gpt2-medium", 4, 1000, attention="flash", recompute="full", holdout=True),
    case("gpt2-large", 2, 1024, attention="flash", precision="bf16", gradient_accumulation_steps=2, holdout=True),
    case("smollm2-360m", 8, 1500, attention="flash", precision="bf16", holdout=True),
    case("smollm2-1.7b", 2, 2048, attention="flash", adapter=WIDE_LORA, holdout=True),
    case("tinyllama-1.1b", 4, 2048, attention="flash", optimizer="sgd-momentum", holdout=True),
    case("llama-3.2-3b", 1, 3000, attention="flash", recompute="selective", holdout=True),
    case(cut("mistral-nemo-12b", 10), 1, 2048, attention="flash", precision="bf16", holdout=True),
    case("qwen2.5-1.5b", 3, 1111, attention="eager", recompute="full", holdout=True),
    case("qwen3-1.7b", 2, 1300, attention="flash", precision="fp16-autocast", holdout=True),
]

SUITES = {"traces": TRACES, "first": FIRST, "holdout": HOLDOUT}
