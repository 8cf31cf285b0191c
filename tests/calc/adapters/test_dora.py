"""DoRA: a magnitude per output, and norms that are computed in every forward."""

from typing import Any

import pytest

from calc import Adapter, ConfigError, Estimate, Scenario, estimate
from calc.ledger import Kind
from tests.calc.adapters.toys import GPT2, LLAMA

LAYERS = 3
RANK = 8
SIZES = [(64, 64), (64, 32)]
"""In and out of q_proj and v_proj, PEFT's default targets."""


def answered(model: dict[str, Any] = LLAMA, *, use_dora: bool = True, dropout: float = 0.0, **choices: Any) -> Estimate:
    adapter = Adapter(rank=RANK, use_dora=use_dora, dropout=dropout)
    return estimate(Scenario(model=model, adapter=adapter, micro_batch_size=2, sequence_length=33, **choices))


def test_one_magnitude_per_output() -> None:
    plain, dora = answered(use_dora=False).parameters, answered().parameters
    assert dora.trainable == plain.trainable + LAYERS * sum(outer for _, outer in SIZES)
    assert dora.frozen == plain.frozen


def test_the_identity_goes_through_both_factors_and_no_gradient_comes_back() -> None:
    plain, dora = (answered(use_dora=use_dora, precision="bf16").flops for use_dora in (False, True))
    delta = LAYERS * sum(2 * inner * RANK * (inner + outer) for inner, outer in SIZES)
    assert dora.forward == plain.forward + delta
    assert dora.backward == plain.backward


def test_with_dropout_the_base_product_is_computed_twice() -> None:
    plain, dropped = (answered(dropout=dropout, precision="bf16").flops for dropout in (0.0, 0.1))
    again = 2 * 2 * 33 * sum(inner * outer for inner, outer in SIZES)
    assert dropped.forward == plain.forward + LAYERS * again
    assert dropped.backward == plain.backward + (LAYERS - 1) * again  # the first layer's input needs no gradient


def test_only_the_second_run_of_a_checkpoint_keeps_the_graph_of_the_norms() -> None:
    """The identity (64 × 64 fp32) and what A makes of it (64 × 8), which nothing but that graph holds."""
    seen = {
        recompute: answered(recompute=recompute, precision="bf16").memory.autograd_saved_bytes
        - answered(recompute=recompute, precision="bf16", use_dora=False).memory.autograd_saved_bytes
        for recompute in ("none", "full")
    }
    assert seen["full"] == 0
    assert seen["none"] > LAYERS * len(SIZES) * 4 * (64 * 64 + 64 * RANK)


def test_nothing_of_the_weights_size_is_left_for_backward() -> None:
    for entry in answered(precision="bf16").tensors:
        if "lora_magnitude_vector" in entry.name and entry.kind is Kind.ACTIVATIONS:
            assert "identity" not in entry.name
            assert "BA" not in entry.name


def test_what_peft_differentiates_by_mistake_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"adapter\.dropout = 0\.1: should be 0 with use_dora on GPT-2"):
        answered(GPT2, dropout=0.1)
    assert answered(GPT2, dropout=0.1, precision="bf16").parameters.trainable  # there the weight is cast first
