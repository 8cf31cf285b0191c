"""Layers as a whole: what the number of heads and the kernel decide beside sizes."""

from typing import Any

import pytest

from calc.assembly import step_memory
from calc.hf_config import architecture
from calc.ledger import Section
from calc.plan import Plan, Workload
from calc.scenario import Attention, Precision

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def layer(config: dict[str, Any], attention: str = "eager", micro_batch_size: int = 2) -> Section:
    workload = Workload(micro_batch_size=micro_batch_size, sequence_length=33)
    plan = Plan(attention=Attention(attention), precision=Precision.BF16)
    return step_memory(architecture(config), workload, plan).runs[1].part.section


def brought_together(section: Section) -> list[str]:
    return [tensor.name[0] for row in section.rows for tensor in row.writes if "heads together" in tensor.name]


@pytest.mark.parametrize(
    ("config", "micro_batch_size", "copied"),
    [
        ({"model_type": "gpt2"}, 2, ["q", "k", "v"]),
        ({"model_type": "gpt2"}, 1, []),  # [1, S, N, D] is [N, S, D] without a copy
        ({"model_type": "gpt2", "n_head": 1}, 2, []),  # as is [B, S, 1, D]
        (LLAMA, 2, ["q"]),  # repeated keys and values lie by head already
        (LLAMA | {"num_key_value_heads": 4}, 2, ["q", "k", "v"]),
        (LLAMA | {"num_key_value_heads": 1}, 2, ["q", "k", "v"]),  # an expanded view does not
    ],
)
def test_what_is_copied_to_lie_by_head(config: dict[str, Any], micro_batch_size: int, copied: list[str]) -> None:
    assert sorted(brought_together(layer(config, micro_batch_size=micro_batch_size))) == sorted(copied)


@pytest.mark.parametrize(
    ("config", "attention", "copied"),
    [
        (LLAMA, "eager", {"q", "k", "v"}),
        (LLAMA, "flash", {"q", "k"}),  # the kernel's gradient of v lies as the projection's output does
        (LLAMA | {"num_attention_heads": 1, "num_key_value_heads": 1}, "eager", set()),
        ({"model_type": "gpt2"}, "eager", {"q", "v"}),
        ({"model_type": "gpt2"}, "flash", set()),
    ],
)
def test_whose_gradients_are_copied(config: dict[str, Any], attention: str, copied: set[str]) -> None:
    views = [row for row in layer(config, attention).rows if row.name == "view"]
    heads = {row.writes[0].name: row.gradients[0].passes for row in views if row.writes[0].name in "qkv"}
    assert heads.keys() == {"q", "k", "v"}
    assert {name for name, passes in heads.items() if not passes} == copied


def test_biases() -> None:
    def biased(config: dict[str, Any]) -> set[str]:
        names = [tensor.name for tensor, _ in layer(config).parameters()]
        return {name.removesuffix(".bias") for name in names if name.endswith(".bias")}

    qkv = {f"self_attn.{name}_proj" for name in "qkv"}
    assert biased(LLAMA) == set()
    assert biased(LLAMA | {"attention_bias": True}) == qkv | {"self_attn.o_proj"}
    assert biased(LLAMA | {"mlp_bias": True}) == {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert biased(LLAMA | {"model_type": "qwen2"}) == qkv
    assert len(biased({"model_type": "gpt2"})) == 6


def test_parameters_come_in_the_order_of_the_modules() -> None:
    names = [tensor.name for tensor, _ in layer(LLAMA | {"model_type": "qwen3", "attention_bias": True}).parameters()]
    attention = [f"self_attn.{name}_proj.{part}" for name in "qkvo" for part in ("weight", "bias")] + [
        "self_attn.q_norm.weight",
        "self_attn.k_norm.weight",
    ]
    assert names == [
        *attention,
        *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    ]
