"""Losses without logits, as CUDA computes them: the corrections apply, and the ledger is their trace to the byte."""

from typing import Any

import pytest
import torch
from torch.nn.modules.linear_cross_entropy import _ChunkContext

from calc import Adapter, Scenario, estimate
from calc.losses import chunk_tokens
from calc.scenario import Loss
from validation.cuda_losses import chunk_size, losses_on_cuda
from validation.trace import trace

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
}
LINEAR_LOSSES = (Loss.CHUNKED_CROSS_ENTROPY, Loss.FUSED_LINEAR_CROSS_ENTROPY)
PRECISIONS = ("fp32", "bf16", "fp16", "bf16-autocast")


def agree(config: dict[str, Any], **fields: Any) -> None:
    fields = {"attention": "eager", "optimizer": "sgd", "micro_batch_size": 3, "sequence_length": 70} | fields
    scenario = Scenario(model=config, **fields)
    traced, estimated = trace(scenario, config), estimate(scenario)
    seen = traced.memory
    assert {name: getattr(estimated.flops, name) for name in traced.flops} == traced.flops
    for name in ("saved_activation_bytes", "autograd_saved_bytes", "peak_allocated_bytes"):
        assert getattr(estimated.memory, name) == seen[name], name
    peaks = [phase.peak_allocated_bytes for phase in estimated.memory.phases]
    assert peaks == [phase["peak_allocated_bytes"] for phase in seen["phases"]]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("loss", LINEAR_LOSSES)
def test_a_tied_head_over_two_micro_batches(loss: Loss, precision: str) -> None:
    config = CONFIG | {"tie_word_embeddings": True}
    agree(config, loss=loss, precision=precision, gradient_accumulation_steps=2)


@pytest.mark.parametrize("vocab_size", [120, 60, 20])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("loss", LINEAR_LOSSES)
def test_small_vocabularies(loss: Loss, precision: str, vocab_size: int) -> None:
    """Two chunks, one, and logits with fewer bytes than the hidden states."""
    agree(CONFIG | {"vocab_size": vocab_size}, loss=loss, precision=precision)


@pytest.mark.parametrize(
    "fields",
    [
        {"adapter": Adapter(rank=4)},
        {"adapter": Adapter(rank=4, modules_to_save=("lm_head",))},
        {"frozen_layers": 1},
        {"recompute": "full"},
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "bf16-autocast"])
@pytest.mark.parametrize("loss", LINEAR_LOSSES)
def test_what_decides_whether_the_head_is_trained(loss: Loss, precision: str, fields: dict[str, Any]) -> None:
    agree(CONFIG | {"num_hidden_layers": 2}, loss=loss, precision=precision, **fields)


@pytest.mark.parametrize("loss", Loss)
def test_held_outputs(loss: Loss) -> None:
    agree(CONFIG, loss=loss, precision="fp16-autocast", hold_outputs=True, gradient_accumulation_steps=2)


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 1000])
def test_ledger_and_emulation_cut_the_same_chunks(num_tokens: int) -> None:
    for vocab_size in (20, 64, 65, 1000):
        expected = chunk_tokens(Loss.FUSED_LINEAR_CROSS_ENTROPY, num_tokens, vocab_size, 64)
        assert chunk_size(num_tokens, vocab_size, 64) == expected


def test_torch_chooses_as_on_a_gpu() -> None:
    """On the CPU the policy is `accurate`, with a cast of the head and whole shares of the tokens."""
    options, sizes = torch.nn.LinearCrossEntropyOptions(), (1024, 64, 1000)
    found = {}
    for where in ("cpu", "cuda"):
        with losses_on_cuda() if where == "cuda" else torch.no_grad():
            chosen = options._adjust(*sizes, dtype=torch.bfloat16, device=torch.device("cpu"))
        found[where] = chosen.acc_policy, chosen.batch_chunk_size, chosen.acc_dtype
    assert found == {"cpu": ("accurate", 64, torch.float32), "cuda": ("compact", 32, torch.float32)}


def test_the_device_is_the_only_difference_of_the_context() -> None:
    x, weight, labels = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((8, 4), (16, 4), (8,)))
    chosen = ("mean", -100, 0.0, 4, "compact", torch.float32, True, True, False)
    arguments = (x, weight, labels.long(), None, None, *chosen)
    cpu = _ChunkContext.build(*arguments)
    with losses_on_cuda():
        cuda = _ChunkContext.build(*arguments)
    assert (cpu.is_cuda, cuda.is_cuda) == (False, True)
    assert (cpu.linear_weight_cast_dtype, cuda.linear_weight_cast_dtype) == (torch.float32, torch.bfloat16)
