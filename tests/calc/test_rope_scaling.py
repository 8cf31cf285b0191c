"""How far a context may go."""

from typing import Any

import pytest

from calc import ConfigError, Scenario, estimate, solve
from calc.rope_scaling import scaled_positions
from calc.solution import Limit

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 97,
    "max_position_embeddings": 100,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 80}


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({}, 100),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.5}}, 250),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 3}}, 300),
        ({"rope_scaling": YARN}, 320),
        ({"rope_scaling": {"type": "yarn", "factor": 1.0, "original_max_position_embeddings": 80}}, 100),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 50}}, 100),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, 800),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 100),
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, 100),
        ({"rope_scaling": "yarn"}, 100),
    ],
)
def test_positions_reach_as_far_as_their_scaling(config: dict[str, Any], positions: int) -> None:
    assert scaled_positions(config, 100) == positions


@pytest.mark.parametrize("page_size", [None, 16])
def test_a_longer_context_is_refused_unless_it_is_scaled(page_size: int | None) -> None:
    def asked(prompt_length: int, output_length: int = 20, **config: Any) -> Scenario:
        sizes = {"prompt_length": prompt_length, "output_length": output_length, "page_size": page_size}
        return Scenario(model=LLAMA | config, task="inference", gpu="rtx-4090", **sizes)  # pyright: ignore

    assert estimate(asked(80)).memory.fits
    with pytest.raises(ConfigError, match="prompt_length = 81: should be at most 80: the model has 100 positions"):
        estimate(asked(81))
    with pytest.raises(ConfigError, match="output_length = 100: should be at most 99: the model has 100 positions"):
        estimate(asked(1, 100))
    assert estimate(asked(300, rope_scaling=YARN)).memory.fits
    with pytest.raises(ConfigError, match="prompt_length = 301: should be at most 300"):
        estimate(asked(301, rope_scaling=YARN))
    longest = solve(asked(1), maximise="prompt_length")
    assert (longest.value, longest.limit) == (80, Limit.REFUSED)


def test_biases_of_positions_have_no_end() -> None:
    alibi = {"model_type": "bloom", "hidden_size": 64, "n_head": 4, "n_layer": 2, "vocab_size": 97, "seq_length": 100}
    assert estimate(Scenario(model=alibi, task="inference", prompt_length=1000)).memory.kv_cache_bytes  # pyright: ignore
