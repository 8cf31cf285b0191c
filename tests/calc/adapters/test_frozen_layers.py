"""Training only the last layers: the embeddings and the first layers keep their weights."""

from typing import Any

import pytest

from calc import Adapter, ConfigError, Estimate, Scenario, estimate

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "intermediate_size": 100,
    "vocab_size": 333,
    "tie_word_embeddings": False,
}
LAYER = 4 * 64 * 64 + 3 * 64 * 100 + 2 * 64
EMBEDDING = 333 * 64
TOKENS = 2 * 33


def answered(frozen_layers: int, **choices: Any) -> Estimate:
    sizes: dict[str, Any] = {"model": LLAMA, "micro_batch_size": 2, "sequence_length": 33, "precision": "bf16"}
    return estimate(Scenario(frozen_layers=frozen_layers, **sizes | choices))


@pytest.mark.parametrize("frozen", range(1, 6))
def test_what_is_trained(frozen: int) -> None:
    parameters = answered(frozen).parameters
    assert parameters.trainable == (5 - frozen) * LAYER + 64 + EMBEDDING
    assert parameters.total == answered(0).parameters.total


def test_a_head_tied_to_a_frozen_embedding_is_frozen() -> None:
    assert answered(5, model=LLAMA | {"tie_word_embeddings": True}).parameters.trainable == 64  # the final norm


def test_frozen_layers_have_no_backward_and_keep_nothing() -> None:
    all_frozen, one_trained = answered(5), answered(4)
    assert all_frozen.flops.forward == one_trained.flops.forward == answered(0).flops.forward
    assert all_frozen.flops.backward == 2 * 2 * TOKENS * EMBEDDING  # the head's two products
    frozen, trained = answered(3).memory.saved_activation_bytes_per_layer  # pyright: ignore
    assert (frozen, trained) == (0, answered(0).memory.saved_activation_bytes_per_layer)


def test_with_checkpoints_the_embeddings_output_needs_a_gradient() -> None:
    plain, checkpointed = answered(4), answered(4, recompute="full")
    assert checkpointed.flops.backward > plain.flops.backward
    assert checkpointed.flops.recompute > 0


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"frozen_layers": 6}, "should be at most 5: the model has that many layers"),
        ({"frozen_layers": 1, "adapter": Adapter()}, "should be 0 with an adapter, which freezes all weights"),
    ],
)
def test_what_cannot_be(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"frozen_layers = {fields['frozen_layers']}: {problem}"):
        answered(**fields)
