"""IA³: a trained vector per adapted module."""

from typing import Any

import pytest

from calc import Adapter, ConfigError, Estimate, Scenario, estimate
from calc.scenario import Precision
from tests.calc.adapters.toys import GPT2, LLAMA


def answered(model: dict[str, Any] = LLAMA, **fields: Any) -> Estimate:
    adapter = Adapter(**{"kind": "ia3", **fields})
    return estimate(Scenario(model=model, adapter=adapter, sequence_length=33, precision=Precision.BF16))


@pytest.mark.parametrize(
    ("model", "fields", "per_layer"),
    [
        (LLAMA, {}, 32 + 32 + 100),  # k_proj's and v_proj's output, down_proj's input
        (LLAMA | {"model_type": "qwen2"}, {}, 64 + 32 + 100),
        (GPT2, {}, 3 * 64 + 4 * 64),
        (LLAMA, {"target_modules": ("down_proj",)}, 64),  # with targets of one's own: its output
        (LLAMA, {"target_modules": ("down_proj",), "feedforward_modules": ("down_proj",)}, 100),
        (LLAMA, {"modules_to_save": ("input_layernorm",)}, 32 + 32 + 100 + 64),
    ],
)
def test_trainable_parameters(model: Any, fields: dict[str, Any], per_layer: int) -> None:
    assert answered(model, **fields).parameters.trainable == 3 * per_layer


def test_it_adds_no_matrix_product() -> None:
    plain = estimate(Scenario(model=LLAMA, sequence_length=33, precision=Precision.BF16))
    assert answered().flops.forward == plain.flops.forward


def test_what_is_scaled_is_kept_for_the_vectors_gradient() -> None:
    names = {entry.name for entry in answered().tensors if entry.alive.startswith("from their forward")}
    assert "v_proj output of the base" in names  # not q_proj's, which is not scaled
    assert "q_proj output of the base" not in names


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"rank": 4}, "rank"), ({"use_dora": True}, "use_dora"), ({"dropout": 0.1}, "dropout"), ({"alpha": 1.0}, "alpha")],
)
def test_what_it_does_not_read_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"adapter\.{field} = .*: is not read with adapter\.kind = ia3"):
        answered(**fields)


def test_a_feedforward_module_is_a_target() -> None:
    with pytest.raises(ConfigError, match=r"adapter\.feedforward_modules = 'up_proj': should be among the target"):
        answered(target_modules=("down_proj",), feedforward_modules=("up_proj",))
