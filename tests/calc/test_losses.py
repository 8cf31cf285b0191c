"""Losses that make no logits: their chunks, their tensors, their products."""

from typing import Any

import pytest

from calc import Adapter, Scenario, estimate
from calc.dtype import DType
from calc.errors import ConfigError
from calc.losses import chunk_tokens, lends_nothing
from calc.scenario import Implementation, Loss

LINEAR_LOSSES = (Loss.CHUNKED_CROSS_ENTROPY, Loss.FUSED_LINEAR_CROSS_ENTROPY)
TOKENS, VOCABULARY, HIDDEN = 1024, 50257, 768
"""GPT-2's."""


def gpt2(**fields: Any) -> Any:
    fields = {"precision": "bf16", "attention": "eager", "micro_batch_size": 1, "sequence_length": TOKENS} | fields
    return estimate(Scenario(model="gpt2", **fields))


@pytest.mark.parametrize(
    ("num_tokens", "vocab_size", "hidden_size", "liger", "torch"),
    [
        (4 * 4096, 32000, 4096, 2048, 1024),  # the example in Liger's source: 16384 / 8
        (1024, 50257, 768, 16, 8),  # ⌈50257 / 768⌉ = 66, ⌈1024 / 66⌉ = 16
        (200, 1000, 64, 16, 8),  # ⌈200 / 16⌉ = 13, up to a power of two
        (200, 60, 64, 200, 128),  # a vocabulary below the hidden size: all at once, at most all there are
        (1, 1000, 64, 1, 1),
    ],
)
def test_tokens_of_a_chunk(num_tokens: int, vocab_size: int, hidden_size: int, liger: int, torch: int) -> None:
    assert chunk_tokens(Loss.FUSED_LINEAR_CROSS_ENTROPY, num_tokens, vocab_size, hidden_size) == liger
    assert chunk_tokens(Loss.CHUNKED_CROSS_ENTROPY, num_tokens, vocab_size, hidden_size) == torch


@pytest.mark.parametrize(
    ("dtype", "vocab_size", "expected"),
    [(DType.FP32, 63, True), (DType.FP32, 64, False), (DType.BF16, 31, True), (DType.BF16, 32, False)],
)
def test_logits_too_small_to_lend_their_storage(dtype: DType, vocab_size: int, expected: bool) -> None:
    assert lends_nothing(vocab_size, 64, dtype) is expected


@pytest.mark.parametrize("loss", LINEAR_LOSSES)
def test_the_same_products_but_those_of_the_head_in_forward(loss: Loss) -> None:
    plain, linear = gpt2().flops, gpt2(loss=loss).flops
    head = 2 * TOKENS * VOCABULARY * HIDDEN
    assert linear.total == plain.total
    assert (linear.forward - plain.forward, plain.backward - linear.backward) == (2 * head, 2 * head)


@pytest.mark.parametrize("loss", LINEAR_LOSSES)
def test_a_frozen_head_costs_one_product_less(loss: Loss) -> None:
    plain, linear = gpt2(adapter=Adapter()).flops, gpt2(adapter=Adapter(), loss=loss).flops
    head = 2 * TOKENS * VOCABULARY * HIDDEN
    assert linear.total == plain.total
    assert linear.forward - plain.forward == head


@pytest.mark.parametrize("loss", LINEAR_LOSSES)
def test_forward_keeps_two_gradients_and_no_logits(loss: Loss) -> None:
    """Log-probabilities in fp32 and logits go, with the head's input; gradients of head and hidden states come."""
    plain, linear = gpt2(), gpt2(loss=loss)
    logits, hidden, weight = TOKENS * VOCABULARY, 2 * TOKENS * HIDDEN, 2 * VOCABULARY * HIDDEN
    labels, scalar = 8 * TOKENS + 512, 512  # padded by one, in units of 512; the number of targets
    gone = logits * (2 + 4) + hidden + labels + scalar
    assert plain.memory.saved_activation_bytes - linear.memory.saved_activation_bytes == gone - weight - hidden
    assert not any("logits" in tensor.name for tensor in linear.tensors if tensor.count_at_peak)


def test_liger_shows_hooks_the_gradients_torch_does_not() -> None:
    torch, liger = (gpt2(loss=loss).memory.autograd_saved_bytes for loss in LINEAR_LOSSES)
    assert liger - torch == 2 * TOKENS * HIDDEN + 2 * VOCABULARY * HIDDEN


@pytest.mark.parametrize("steps", [1, 2])
def test_held_outputs(steps: int) -> None:
    """The logits and the loss live through backward; forward and optimizer stay as they are."""
    dropped, held = (
        gpt2(hold_outputs=hold, gradient_accumulation_steps=steps, recompute="full").memory for hold in (False, True)
    )
    forward, backward, optimizer = (
        after.peak_allocated_bytes - before.peak_allocated_bytes
        for before, after in zip(dropped.phases, held.phases, strict=True)
    )
    assert (forward, backward, optimizer) == (0, 2 * TOKENS * VOCABULARY + 512, 0)


@pytest.mark.parametrize("loss", LINEAR_LOSSES)
def test_the_papers_block_has_its_own_loss(loss: Loss) -> None:
    with pytest.raises(ConfigError, match=r"^loss = "):
        gpt2(loss=loss, implementation=Implementation.MEGATRON)
