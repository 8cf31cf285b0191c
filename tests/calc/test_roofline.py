"""Seconds of a generation: each the sum of its operations, and the sum over tokens that of the tokens."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc import ConfigError, Estimate, Scenario, Solution, estimate, solve
from calc.dtype import DType
from calc.efficiency import ACHIEVED_BF16_FLOPS_PER_SECOND, reachable
from calc.hardware import gpu_named, gpus
from calc.roofline import Bound, InferenceTime, PassTime, summed_longest
from calc.scenario import Task
from calc.solution import Limit
from calc.traffic import Operation

GPU = "h100-sxm-80gb"
FLOPS_PER_SECOND = 794.5e12
BYTES_PER_SECOND = 0.8 * 3.35e12
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 104,
    "vocab_size": 199,
    "max_position_embeddings": 4096,
}
FEW = {"batch_size": 4, "prompt_length": 500, "output_length": 20}


def generated(model: Any = "llama-3.1-8b", **fields: Any) -> Estimate:
    return estimate(Scenario(model=model, task=Task.INFERENCE, **{"gpu": GPU, **FEW} | fields))


def timed(model: Any = "llama-3.1-8b", **fields: Any) -> InferenceTime:
    time = generated(model, **fields).time
    assert time is not None
    return time


def decoded(time: InferenceTime) -> PassTime:
    assert time.last_decode is not None
    return time.last_decode


def test_a_token_takes_as_long_as_its_bytes() -> None:
    """At a batch of four every operation waits for memory."""
    token = decoded(timed())
    assert token.compute_bound_seconds == 0
    assert token.bound is Bound.MEMORY
    assert token.seconds == pytest.approx(sum(token.bytes_moved.values()) / BYTES_PER_SECOND)


def test_a_long_prompt_takes_as_long_as_its_products() -> None:
    parts = {part.operation: part for part in timed(prompt_length=4096).prefill.parts}
    mlp, core = parts[Operation.MLP], parts[Operation.ATTENTION_CORE]
    assert mlp.compute_bound_seconds == pytest.approx(mlp.flops / FLOPS_PER_SECOND)
    assert mlp.bound is Bound.COMPUTE
    assert core.seconds == pytest.approx(core.flops * 4097 / 8192 / FLOPS_PER_SECOND)
    assert parts[Operation.NORM].bound is Bound.MEMORY


def test_a_prompt_is_the_sum_of_its_parts() -> None:
    time = timed(prompt_length=4096)
    assert time.prefill.seconds == pytest.approx(sum(part.seconds for part in time.prefill.parts))
    assert time.prefill.bound is Bound.COMPUTE
    assert time.total_seconds == time.prefill_seconds + time.decode_seconds


@pytest.mark.parametrize("batch_size", [1, 300, 700])
def test_decoding_is_the_sum_of_its_tokens(batch_size: int) -> None:
    """Token by token, each an answer of its own; the largest batch has operations that change sides."""
    fields = {"batch_size": batch_size, "gpu": "rtx-4090"}
    whole = timed(TINY, **fields)
    prompts = range(FEW["prompt_length"], FEW["prompt_length"] + FEW["output_length"])
    tokens = [decoded(timed(TINY, **fields, prompt_length=length, output_length=1)).seconds for length in prompts]
    assert whole.decode_seconds == pytest.approx(sum(tokens))
    assert whole.seconds_per_output_token == pytest.approx(sum(tokens) / len(tokens))
    assert whole.first_decode is not None
    assert (whole.first_decode.seconds, decoded(whole).seconds) == pytest.approx((tokens[0], tokens[-1]))


@pytest.mark.parametrize("window", [200, 499, 500, 501, 510, 519, 520])
def test_decoding_past_a_window_is_the_sum_of_its_tokens(window: int) -> None:
    """Layers with a window stop growing on the way; one that cut the prompt off has all of it for one token more."""
    fields = {"gpu": "rtx-4090", "attention": "eager"}
    windowed = TINY | {"model_type": "mistral", "sliding_window": window}
    outputs = range(1, FEW["output_length"] + 1)
    tokens = [decoded(timed(windowed, **fields, output_length=length)).seconds for length in outputs]
    assert timed(windowed, **fields).decode_seconds == pytest.approx(sum(tokens))


numbers = st.floats(min_value=0, max_value=1e3, allow_nan=False)


@given(st.tuples(numbers, numbers), st.tuples(numbers, numbers), st.integers(1, 30))
def test_the_sum_of_the_larger_of_two_lines(
    first: tuple[float, float], last: tuple[float, float], num_steps: int
) -> None:
    last = first if num_steps == 1 else last
    steps = max(1, num_steps - 1)
    each = [
        max(start + (end - start) * index / steps for start, end in zip(first, last, strict=True))
        for index in range(num_steps)
    ]
    assert summed_longest(first, last, num_steps) == pytest.approx(sum(each), abs=1e-6)


def test_rates_are_of_all_sequences() -> None:
    time = timed()
    assert time.output_tokens_per_second == pytest.approx(4 * 20 / time.decode_seconds)
    assert time.joules_per_output_token == pytest.approx(700 * time.decode_seconds / 80)
    assert timed(gpu="gh200-96gb").joules_per_output_token is None


def test_without_an_output_there_is_nothing_to_decode() -> None:
    given = timed(output_length=0).to_dict()
    of_decoding = ("seconds_per_output_token", "output_tokens_per_second", "first_decode", "last_decode")
    assert given["decode_seconds"] == 0
    assert [given[name] for name in (*of_decoding, "ridge_batch_size", "joules_per_output_token")] == [None] * 6


def test_at_the_ridge_products_take_as_long_as_their_weights() -> None:
    """Two FLOPs for each weight of two bytes: as many sequences as the GPU does FLOPs while it reads a byte."""
    time = timed()
    ridge = FLOPS_PER_SECOND / BYTES_PER_SECOND
    assert time.reachable.ridge_flops_per_byte == pytest.approx(ridge)
    assert time.ridge_batch_size == -(-ridge // 1)
    fp32 = timed(weight_dtype="fp32")
    assert fp32.reachable.flops_per_second == pytest.approx(67e12 * 794.5 / 989.5)
    assert fp32.ridge_batch_size == -(-2 * fp32.reachable.ridge_flops_per_byte // 1)
    mixtral = timed("mixtral-8x7b")  # of eight experts two compute, and in large batches all are read
    assert mixtral.ridge_batch_size is not None
    assert 3.5 * ridge < mixtral.ridge_batch_size < 4 * ridge


def test_time_is_known_where_a_gpu_and_its_peak_are() -> None:
    assert generated(gpu=None).time is None
    assert estimate(Scenario(model="gpt2", gpu=GPU)).time is None
    turing = generated(gpu="t4")
    assert turing.time is None
    assert any("no peak of bf16" in note for note in turing.notes)
    assert generated(gpu="t4", weight_dtype="fp16").time is not None


def test_time_is_computed_when_asked_for() -> None:
    answer = generated()
    assert "time" not in vars(answer)
    assert answer.to_dict()["time"]["prefill_seconds"] == answer.time.prefill_seconds  # pyright: ignore[reportOptionalMemberAccess]


def test_reachable_shares_are_shares() -> None:
    names = {gpu.name for gpu in gpus()}
    assert ACHIEVED_BF16_FLOPS_PER_SECOND.keys() <= names
    for gpu in gpus():
        limit = reachable(gpu, DType.BF16)
        if limit is not None:
            assert 0.5 <= limit.compute_share < 1, gpu.name
            assert limit.memory_share == 0.8


def test_a_faster_memory_makes_decoding_faster_by_as_much() -> None:
    gpu = gpu_named(GPU)
    faster = replace(gpu, memory_bandwidth_bytes_per_second=2 * gpu.memory_bandwidth_bytes_per_second)
    slow, fast = (reachable(each, DType.BF16) for each in (gpu, faster))
    assert slow is not None
    assert fast is not None
    assert fast.ridge_flops_per_byte == slow.ridge_flops_per_byte / 2


# --- the largest that keeps to a latency --------------------------------------------------------------------------


def solved(seconds: float | None, **sought: Any) -> Solution:
    scenario = Scenario(model="llama-3.1-8b", task=Task.INFERENCE, gpu=GPU, prompt_length=2048, output_length=512)
    return solve(scenario.model_copy(update=sought.pop("fields", {})), max_seconds_per_token=seconds, **sought)


def seconds_of(answer: Estimate | None) -> float:
    assert answer is not None
    assert answer.time is not None
    assert answer.time.seconds_per_output_token is not None
    return answer.time.seconds_per_output_token


def test_the_most_sequences_within_a_latency() -> None:
    within = solved(0.02, maximise="batch_size")
    assert within.limit is Limit.LATENCY
    assert seconds_of(within.estimate) <= 0.02 < seconds_of(within.next_estimate)
    assert within.reason == f"batch_size = {within.next_value} takes 20.2 ms a token of 20.0 ms"
    alone, slow = solved(None, maximise="batch_size"), solved(10.0, maximise="batch_size")
    assert (slow.value, slow.limit) == (alone.value, Limit.MEMORY)
    impossible = solved(0.001, maximise="batch_size")
    assert (impossible.value, impossible.limit, impossible.next_value) == (None, Limit.LATENCY, 1)


def test_the_longest_context_within_a_latency() -> None:
    within = solved(0.008, maximise="prompt_length", fields={"batch_size": 2})
    assert seconds_of(within.estimate) <= 0.008 < seconds_of(within.next_estimate)


def test_the_smallest_gpu_within_a_latency() -> None:
    any_speed, fast = (solved(seconds, minimise="gpu", fields={"batch_size": 1}) for seconds in (None, 0.007))
    assert gpu_named(str(any_speed.value)).capacity_bytes < gpu_named(str(fast.value)).capacity_bytes
    assert seconds_of(fast.estimate) <= 0.007
    assert fast.limit is Limit.LATENCY


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf"), True, "fast"])
def test_a_latency_is_a_positive_number(seconds: Any) -> None:
    with pytest.raises(ConfigError, match="positive number of seconds"):
        solved(seconds, maximise="batch_size")


def test_only_an_output_has_a_latency() -> None:
    with pytest.raises(ConfigError, match="needs an output_length"):
        solved(0.1, maximise="batch_size", fields={"output_length": 0})
    with pytest.raises(ConfigError, match="task = inference only"):
        solve(Scenario(model="gpt2", gpu=GPU), maximise="micro_batch_size", max_seconds_per_token=1.0)
