"""The readers of the GPT-like families: what they refuse, and fields with two spellings.

tests/validation/test_config_defaults.py compares their defaults with transformers' own.
"""

from typing import Any

import pytest

from calc import Scenario, estimate
from calc.errors import ConfigError
from calc.hf_config import architecture
from calc.scenario import Loss

NOT_MODELLED = [
    ("gpt_bigcode", "add_cross_attention", True),
    ("opt", "do_layer_norm_before", False),
    ("opt", "_remove_final_layer_norm", True),
    ("opt", "layer_norm_elementwise_affine", False),
    ("opt", "layerdrop", 0.1),
    ("opt", "word_embed_proj_dim", 512),
    ("phi", "qk_layernorm", True),
]


@pytest.mark.parametrize(("family", "field", "value"), NOT_MODELLED)
def test_what_is_not_modelled_is_refused_by_name(family: str, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"model.{field} = .* is not supported yet; should be "):
        architecture({"model_type": family, field: value})


def test_null_is_what_the_family_does() -> None:
    assert architecture({"model_type": "opt", "word_embed_proj_dim": None}) == architecture({"model_type": "opt"})


def rotary_dim(**config: Any) -> int:
    layer, _ = architecture(config).layers[0]
    return layer.rotary_dim


def test_the_share_of_a_head_that_positions_turn_has_three_names() -> None:
    assert rotary_dim(model_type="gpt_neox") == 96 // 4
    assert rotary_dim(model_type="gpt_neox", rotary_pct=0.5) == 96 // 2
    assert rotary_dim(model_type="gpt_neox", rotary_pct=1.0, rope_parameters={"partial_rotary_factor": 0.5}) == 96 // 2
    assert rotary_dim(model_type="gpt_neox", rope_scaling={"partial_rotary_factor": 0.5, "rope_type": "linear"}) == 48
    assert rotary_dim(model_type="phi") == 64 // 2
    assert rotary_dim(model_type="phi", partial_rotary_factor=0.25) == 64 // 4


@pytest.mark.parametrize(("share", "expected"), [(0.0, "above 0"), (1.5, "at most 1"), ("a", "number"), (0.1, "pairs")])
def test_a_share_that_cannot_be(share: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        rotary_dim(model_type="gpt_neox", rotary_pct=share)


@pytest.mark.parametrize("loss", [each for each in Loss if each is not Loss.CROSS_ENTROPY])
def test_a_head_with_a_bias_has_its_logits(loss: Loss) -> None:
    with pytest.raises(ConfigError, match="should be cross-entropy: this model's head has a bias"):
        estimate(Scenario(model={"model_type": "phi"}, loss=loss, sequence_length=8))
