"""The real training job of a Scenario: transformers model, PEFT adapter, checkpointing, optimizer, autocast, scaler.

The same job is traced without a GPU (fake tensors on "cpu") and measured on one ("cuda"). Written for transformers
5.23.0 and peft 0.21.2.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import peft
import torch
import transformers
from torch.utils.checkpoint import checkpoint, noop_context_fn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from calc.errors import ConfigError
from calc.scenario import (
    Adapter,
    AdapterDType,
    AdapterKind,
    Attention,
    Implementation,
    Loss,
    Optimizer,
    Parallel,
    Precision,
    Recompute,
    Scenario,
    Task,
)

transformers.logging.set_verbosity_error()

Key = TypeVar("Key")
Value = TypeVar("Value")

LONGEST_DEFAULT_SEQUENCE = 4096

WEIGHT_DTYPE = {
    Precision.FP32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
    Precision.BF16_AUTOCAST: torch.float32,
    Precision.FP16_AUTOCAST: torch.float32,
}
AUTOCAST_DTYPE = {Precision.BF16_AUTOCAST: torch.bfloat16, Precision.FP16_AUTOCAST: torch.float16}

OPTIMIZERS: dict[Optimizer, Callable[..., torch.optim.Optimizer]] = {
    Optimizer.ADAMW: partial(torch.optim.AdamW, foreach=True),
    Optimizer.ADAMW_FUSED: partial(torch.optim.AdamW, fused=True),
    Optimizer.ADAMW_FOR_LOOP: partial(torch.optim.AdamW, foreach=False, fused=False),
    Optimizer.SGD: partial(torch.optim.SGD, foreach=True),
    Optimizer.SGD_MOMENTUM: partial(torch.optim.SGD, foreach=True, momentum=0.9),
}

ONLY = {
    "task": Task.TRAINING,
    "implementation": Implementation.TRANSFORMERS,
    "loss": Loss.CROSS_ENTROPY,
    "recompute_group_size": 1,
    "parallel": Parallel(),
}
"""Fields of which one value is run here."""

DROPOUT_FIELDS = ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that one training step needs; `scaler` is None unless the precision is fp16-autocast."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: torch.amp.GradScaler | None
    input_ids: torch.Tensor
    gradient_accumulation_steps: int


ContextPair = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


def build_job(
    scenario: Scenario, config: dict[str, Any], device: str, kernel: str, context_fn: ContextPair = noop_context_fn
) -> Job:
    """The job on `device`; transformers' attention function `kernel` ("sdpa", "eager", ...) computes its attention.

    `context_fn` makes the contexts of a checkpointed region's forward and of its recomputation.
    """
    for field, only in ONLY.items():
        supported(field, getattr(scenario, field), {only: None})
    checkpoint_options = {"use_reentrant": False, "context_fn": context_fn}
    precision = supported("precision", scenario.precision, WEIGHT_DTYPE)
    optimizer = supported("optimizer", scenario.optimizer, OPTIMIZERS)
    hf_config = AutoConfig.for_model(**with_dropout(config, scenario.dropout))
    if scenario.recompute is Recompute.SELECTIVE:
        kernel = checkpointed(kernel, scenario.recompute_interval, checkpoint_options)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(hf_config, dtype=precision, attn_implementation=kernel)
        if scenario.recompute is Recompute.FULL:
            model.activation_checkpointing_enable(checkpoint_options, scenario.recompute_interval)
        if scenario.adapter is not None:
            model = with_adapter(model, scenario.adapter)
        model.train()
        input_ids = torch.zeros(scenario.micro_batch_size, sequence_length(scenario, hf_config), dtype=torch.int64)
    autocast_dtype = AUTOCAST_DTYPE.get(scenario.precision)
    return Job(
        model=model,
        optimizer=optimizer([p for p in model.parameters() if p.requires_grad]),
        autocast=partial(torch.autocast, device, autocast_dtype) if autocast_dtype else nullcontext,
        scaler=torch.amp.GradScaler(device) if scenario.precision is Precision.FP16_AUTOCAST else None,
        input_ids=input_ids,
        gradient_accumulation_steps=scenario.gradient_accumulation_steps,
    )


def supported(field: str, asked: Key, known: dict[Key, Value]) -> Value:
    if asked not in known:
        raise ConfigError(field, str(asked), f"cannot be run; known: {', '.join(map(str, known))}")
    return known[asked]


def attention_kernel(scenario: Scenario) -> Attention:
    """flash or eager: what `auto` means for this precision, or the kernel that was asked for."""
    if scenario.attention is Attention.AUTO and scenario.precision is not Precision.FP32:
        return Attention.FLASH
    if scenario.attention in (Attention.FLASH, Attention.EAGER):
        return scenario.attention
    raise ConfigError("attention", str(scenario.attention), "cannot be run; known: flash, eager")


def sequence_length(scenario: Scenario, hf_config: Any) -> int:
    return scenario.sequence_length or min(hf_config.max_position_embeddings, LONGEST_DEFAULT_SEQUENCE)


def with_dropout(config: dict[str, Any], dropout: float | None) -> dict[str, Any]:
    return config if dropout is None else config | dict.fromkeys(DROPOUT_FIELDS, dropout)


def with_adapter(model: Any, adapter: Adapter) -> torch.nn.Module:
    supported("adapter.kind", adapter.kind, {AdapterKind.LORA: None})
    targets = adapter.target_modules
    lora = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # pyright: ignore[reportArgumentType]  # any number is used as it is
        lora_dropout=adapter.dropout,
        target_modules=None if targets is None else list(targets),
        fan_in_fan_out=model.config.model_type == "gpt2",  # its Conv1D keeps [in, out] weights
    )
    return peft.get_peft_model(model, lora, autocast_adapter_dtype=adapter.dtype is AdapterDType.FP32)


def checkpointed(kernel: str, interval: int, options: dict[str, Any]) -> str:
    """Registers attention `kernel`, checkpointed in every `interval`-th layer; returns its name."""
    name = f"checkpointed_{kernel}_{interval}"

    def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        core = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager)
        if module.layer_idx % interval:
            return core(module, query, key, value, attention_mask, **kwargs)
        return checkpoint(core, module, query, key, value, attention_mask, **options, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
    return name
