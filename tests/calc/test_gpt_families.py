"""The readers of the GPT-like families: what they refuse, and fields with two spellings.

tests/validation/test_config_defaults.py compares their defaults with transformers' own.
"""

from typing import Any

import pytest

from calc import Scenario, estimate
from calc.errors import ConfigError
from calc.hf_config import architecture
from calc.scenario import Attention, Loss, Precision, Recompute

NOT_MODELLED = [
    ("bloom", "apply_residual_connection_post_layernorm", True),
    ("bloom", "slow_but_exact", True),
    ("falcon", "alibi", True),
    ("falcon", "bias", True),
    ("gpt_bigcode", "add_cross_attention", True),
    ("mpt", "expansion_ratio", 2),
    ("mpt", "no_bias", False),
    ("mpt", "logit_scale", "inv_sqrt_d_model"),
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


@pytest.mark.parametrize("family", ["bloom", "gpt_neo", "gptj", "mpt"])
@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("attention", Attention.FLASH, "should be auto or eager: transformers writes the attention of"),
        ("recompute", Recompute.SELECTIVE, "should be none or full: the attention of"),
    ],
)
def test_attention_that_is_written_out(family: str, field: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} = .*{expected} {family}"):
        estimate(Scenario(model={"model_type": family}, sequence_length=8, **{field: value}))
    with pytest.raises(ConfigError, match=f"should be 1: layers of {family} return more than their output"):
        estimate(
            Scenario(model={"model_type": family}, sequence_length=8, recompute=Recompute.FULL, recompute_group_size=2)
        )


@pytest.mark.parametrize("types", [[[["global"], 12]], [[["global", "dense"], 12]], [["global"]], "global", 24])
def test_gpt_neo_names_a_type_for_each_layer(types: Any) -> None:
    with pytest.raises(ConfigError, match="should name global or local for 24 layers"):
        architecture({"model_type": "gpt_neo", "attention_types": types})


@pytest.mark.parametrize("rotary_dim", [7, 258])
def test_gptj_turns_pairs_of_a_head(rotary_dim: int) -> None:
    with pytest.raises(ConfigError, match="should be even, and at most 256, the size of a head"):
        architecture({"model_type": "gptj", "rotary_dim": rotary_dim})


def test_gptj_has_an_end_of_positions() -> None:
    with pytest.raises(ConfigError, match="should be at most 2048: the model has that many positions"):
        estimate(Scenario(model={"model_type": "gptj"}, sequence_length=2049))


@pytest.mark.parametrize(
    ("field", "value"), [("attn_pdrop", 1), ("clip_qkv", 6), ("alibi", False), ("attn_type", "multiquery_attention")]
)
def test_what_is_not_modelled_of_mpts_attention(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"model.{field} = .* is not supported yet; should be "):
        architecture({"model_type": "mpt", "attn_config": {field: value}})


FALCON = {"model_type": "falcon", "hidden_size": 128, "num_attention_heads": 8, "num_hidden_layers": 2}
NEW_FALCON = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}


def test_falcons_always_have_a_mask_and_one_head_is_broadcast_by_no_fused_kernel() -> None:
    def kernel(config: dict[str, Any]) -> Attention:
        return estimate(Scenario(model=config, precision=Precision.BF16, sequence_length=16)).step.plan.attention

    assert kernel(FALCON) == kernel(NEW_FALCON | {"hidden_size": 8 * 18}) == Attention.MATH
    assert kernel(FALCON | {"multi_query": False}) == kernel(NEW_FALCON) == Attention.EFFICIENT
    with pytest.raises(ConfigError, match="always gives its attention a mask"):
        estimate(Scenario(model=NEW_FALCON, precision=Precision.BF16, attention=Attention.FLASH, sequence_length=16))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (FALCON | {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        (FALCON | {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads"),
        (NEW_FALCON | {"num_kv_heads": 1}, "num_kv_heads"),
        (NEW_FALCON | {"num_kv_heads": 3}, "num_kv_heads"),
        (NEW_FALCON | {"parallel_attn": False}, "parallel_attn"),
    ],
)
def test_falcons_that_transformers_or_the_ledger_does_not_run(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        architecture(config)
