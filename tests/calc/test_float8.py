"""Linear layers in fp8: what changes beside a step without them, by hand, and what is refused."""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import pytest

from calc import Adapter, ConfigError, Scenario, estimate, solve
from calc.contexts import Context, Event
from calc.dtype import DType
from calc.ledger import Section, Tensor
from calc.lifetimes import lifetimes
from calc.operators import Numerics, linear
from calc.sizes import Sizes, storage_class

H, F, KV, LAYERS = 64, 160, 32, 3
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": H,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": LAYERS,
    "intermediate_size": F,
    "vocab_size": 97,
    "max_position_embeddings": 512,
}
WEIGHTS = (H * H, KV * H, KV * H, H * H, F * H, F * H, H * F)


def asked(**fields: Any) -> Scenario:
    common: dict[str, Any] = {
        "model": LLAMA,
        "micro_batch_size": 2,
        "sequence_length": 48,
        "float8_recipe": "tensorwise",
    }
    return Scenario(**common | fields)


def test_what_is_kept_is_what_nn_linear_keeps_but_for_the_casts_of_weights() -> None:
    for precision, by_weight in (("bf16", 0), ("fp32", 0), ("bf16-autocast", 2)):
        plain = estimate(asked(precision=precision, float8_recipe=None))
        answer = estimate(asked(precision=precision))
        spared = plain.memory.saved_activation_bytes - answer.memory.saved_activation_bytes
        assert spared == LAYERS * sum(by_weight * each for each in WEIGHTS)
        assert answer.memory.persistent_bytes == plain.memory.persistent_bytes
        assert answer.flops.total == plain.flops.total


def highest(events: Iterable[Event], sizes: Sizes) -> int:
    """Bytes above where `events` begin."""
    changes = (sizes[storage_class(tensor)] * (1 if allocated else -1) for tensor, allocated in events)
    return max(accumulate(changes))


@pytest.mark.parametrize(("m", "k", "n"), [(48, 64, 160), (160, 64, 48), (48, 160, 64), (512, 64, 64), (32, 512, 512)])
def test_the_moments_of_one_linear_by_hand(m: int, k: int, n: int) -> None:
    numerics = Numerics(weights=DType.BF16, compute=DType.BF16, float8=True)
    x, out = Tensor("x", ("B", "S", "H"), DType.BF16), Tensor("y", ("B", "S", "F"), DType.BF16)
    rows = linear("up", x, out, ("H",), ("F",), numerics)
    life = lifetimes(Section(name="one", rows=tuple(rows), input=x, output=out), Context(input_required=True))
    sizes = Sizes({"B": 1, "S": m, "H": k, "F": n})
    scale = 512
    cast_x, cast_w, cast_g = (scale + (4 + 4 + 1) * each for each in (m * k, k * n, m * n))  # scaled, clamped, in fp8
    input_in_8, weight_in_8, gradient_in_8 = (scale + each for each in (m * k, k * n, m * n))
    assert highest(life.forward, sizes) == max(
        cast_x,
        input_in_8 + cast_w,
        input_in_8 + weight_in_8 + 2 * m * n + 2 * scale,
    )
    before_second = gradient_in_8 + weight_in_8 + 2 * m * k
    all_in_8 = before_second + gradient_in_8 + input_in_8
    assert highest(life.backward, sizes) == max(
        cast_g,
        gradient_in_8 + cast_w,
        before_second + k * n + 2 * scale,
        before_second + cast_g,
        before_second + gradient_in_8 + cast_x,
        all_in_8 + 2 * k * n + m * n + m * k + 2 * scale,
    )


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"model": "gpt2"}, "float8_recipe", "Conv1D"),
        ({"model": {"model_type": "falcon"}, "sequence_length": 16}, "float8_recipe", "Falcon adds"),
        ({"model": "mixtral-8x7b"}, "float8_recipe", "mixture"),
        ({"model": "deepseek-v2-lite"}, "float8_recipe", "not supported yet"),
        ({"model": LLAMA | {"intermediate_size": 100}}, "float8_recipe", "multiples of 16, and a linear layer has 100"),
        ({"sequence_length": 20}, "sequence_length", "times micro_batch_size = 2 should be a multiple of 16"),
        ({"adapter": Adapter()}, "float8_recipe", "adapter"),
        ({"recompute": "operators"}, "float8_recipe", "recompute = operators"),
        ({"use_liger_kernel": True}, "float8_recipe", "use_liger_kernel = true"),
        ({"precision": "megatron-18"}, "float8_recipe", "precision = megatron-18"),
        ({"implementation": "megatron", "precision": "bf16"}, "float8_recipe", "implementation = megatron"),
        ({"gpu": "a100-sxm-80gb"}, "gpu", "compute capability 8.9"),
        (
            {"task": "inference", "micro_batch_size": 1, "sequence_length": None, "prompt_length": 16},
            "float8_recipe",
            "not read",
        ),
    ],
)
def test_what_it_does_not_go_with(fields: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        estimate(asked(**fields))
    assert refusal.value.field == field


@pytest.mark.parametrize(("size", "step"), [(1, 16), (2, 8), (3, 16), (16, 1)])
def test_the_longest_sequence_is_one_that_can_be(size: int, step: int) -> None:
    scenario = asked(model="llama-3.2-1b", micro_batch_size=size, gpu="rtx-4090", precision="bf16")
    solution = solve(scenario, maximise="sequence_length")
    assert isinstance(solution.value, int)
    assert solution.value * size % 16 == 0
    assert solution.next_value == solution.value + step
    assert solution.estimate.memory.fits
    assert solution.next_estimate is not None
    assert not solution.next_estimate.memory.fits


def test_the_smallest_gpu_is_one_that_multiplies_in_fp8() -> None:
    smallest = {recipe: solve(asked(float8_recipe=recipe), minimise="gpu").value for recipe in (None, "tensorwise")}
    assert smallest[None] != smallest["tensorwise"]
    assert estimate(asked(gpu=smallest["tensorwise"])).memory.fits


def test_the_reserved_bytes_follow_every_storage() -> None:
    answer = estimate(asked(recompute="full"))
    assert answer.memory.reserved is not None
    assert answer.memory.reserved.peak_reserved_bytes >= answer.memory.peak_allocated_bytes


def test_it_is_said_what_was_not_measured() -> None:
    assert any("torchao 0.18.0" in note and "not measured" in note for note in estimate(asked()).notes)
