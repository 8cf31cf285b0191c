"""Bytes and FLOPs of the rows: closed forms of what a pass cannot but move."""

import random
from itertools import product
from typing import Any

import pytest

from calc import Estimate, Scenario, estimate
from calc.dtype import DType
from calc.ledger import Row, Section, Tensor
from calc.memory import StepMemory
from calc.primitives import add, frame, view
from calc.scenario import Task
from calc.sizes import Sizes
from calc.traffic import Holds, Operation, forward_work, section_work, used_experts

B, PROMPT, OUTPUT = 3, 200, 50
TIED_EMBEDDINGS = "gpt2"
MODELS = ("llama-3.1-8b", TIED_EMBEDDINGS, "qwen3-0.6b", "mixtral-8x7b", "gemma-2-9b")


def generated(model: str | dict[str, Any], **fields: Any) -> Estimate:
    sizes: dict[str, Any] = {"batch_size": B, "prompt_length": PROMPT, "output_length": OUTPUT}
    return estimate(Scenario(model=model, task=Task.INFERENCE, **sizes | fields))


def last_pass(answer: Estimate) -> StepMemory:
    assert answer.generation is not None
    return answer.generation.passes[-1]


def moved(step: StepMemory, holds: Holds, operation: Operation | None = None) -> int:
    done = (each for each in forward_work(step) if operation in (None, each.work.operation))
    return sum(each.times * each.bytes_moved[holds] for each in done)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen2.5-7b", "gemma-2-9b", "smollm2-135m"])
def test_a_token_reads_every_weight_once_and_of_the_embedding_its_own_rows(model: str) -> None:
    answer = generated(model)
    architecture = answer.architecture
    table = 2 * architecture.vocab_size * architecture.hidden_size
    rows = 2 * B * architecture.hidden_size
    weights = 2 * answer.parameters.total
    # A tied table is read whole, too: as the head's matrix.
    expected = weights + rows - (0 if architecture.tied_embeddings else table)
    buffers = 2 if architecture.model_type == "gemma2" else 0  # the scale of its embeddings
    assert moved(last_pass(answer), Holds.WEIGHTS) == expected + buffers


def test_gpt2_reads_of_both_embeddings_the_tokens_rows() -> None:
    answer = generated("gpt2")
    architecture = answer.architecture
    positions = 2 * architecture.max_position_embeddings * architecture.hidden_size
    rows = 2 * (B + 1) * architecture.hidden_size
    assert moved(last_pass(answer), Holds.WEIGHTS) == 2 * answer.parameters.total - positions + rows


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gpt2", "mixtral-8x7b"])
def test_a_token_reads_the_cache_once_for_attention_and_copies_it_once(model: str) -> None:
    answer = generated(model)
    step, cache_bytes = last_pass(answer), answer.memory.kv_cache_bytes
    assert cache_bytes is not None
    before = cache_bytes * (PROMPT + OUTPUT - 1) // (PROMPT + OUTPUT)
    assert moved(step, Holds.KV_CACHE, Operation.ATTENTION_CORE) == cache_bytes
    assert moved(step, Holds.KV_CACHE, Operation.CACHE_UPDATE) == before + cache_bytes
    assert moved(step, Holds.KV_CACHE) == before + 2 * cache_bytes


@pytest.mark.parametrize(
    ("model", "attention"),
    [*product(MODELS, ["auto", "eager"]), *product(MODELS[:-1], ["math"])],  # Gemma 2 caps its scores: eager only
)
def test_the_flops_are_the_answers(model: str, attention: str) -> None:
    answer = generated(model, attention=attention)
    assert answer.generation is not None
    passes = (answer.generation.prefill, answer.generation.decode)
    for step, flops in zip(passes, (answer.flops.prefill, answer.flops.decode), strict=True):
        assert step is not None
        assert sum(done.times * done.flops for done in forward_work(step)) == flops


def test_a_fused_kernel_skips_what_a_causal_mask_throws_away() -> None:
    def core(attention: str, which: int) -> tuple[int, int]:
        generation = generated("gpt2", attention=attention).generation
        assert generation is not None
        done = [each for each in forward_work(generation.passes[which]) if each.work.operation == "attention_core"]
        return sum(each.flops for each in done), sum(each.done_flops for each in done)

    whole, done = core("flash", 0)
    assert done * 2 * PROMPT == whole * (PROMPT + 1)
    assert core("eager", 0) == (whole, whole)
    token, done = core("flash", 1)
    assert done == token  # one token sees all


def test_a_fused_kernel_moves_what_goes_in_and_out() -> None:
    step = last_pass(generated("llama-3.1-8b"))
    core = next(each for each in forward_work(step) if each.work.operation is Operation.ATTENTION_CORE)
    q = out = B * 32 * 128 * 2
    logsumexp, generator = B * 32 * 4, 3 * 8
    assert core.bytes_moved[Holds.ACTIVATIONS] == q + out + logsumexp + generator
    assert core.bytes_moved[Holds.KV_CACHE] == 2 * B * (PROMPT + OUTPUT) * 8 * 128 * 2


def test_a_product_moves_its_factors_and_its_result() -> None:
    step = last_pass(generated("llama-3.1-8b"))
    down = next(each for each in forward_work(step) if each.work.module == "mlp.down_proj")
    assert down.bytes_moved == {
        Holds.WEIGHTS: 2 * 14336 * 4096,
        Holds.KV_CACHE: 0,
        Holds.ACTIVATIONS: 2 * B * (14336 + 4096),
    }
    assert down.flops == 2 * B * 14336 * 4096


def test_views_and_returns_move_nothing_and_an_expanded_view_what_it_expands() -> None:
    x, out = Tensor("x", ("B", 1, "D"), DType.BF16), Tensor("sum", ("B", "N", "D"), DType.FP32)
    wide, turned = Tensor("wide", ("B", "N", "D"), DType.BF16), Tensor("turned", ("B", "N", "D"), DType.BF16)
    rows = (view(x, wide), view(wide, turned), add(turned, turned, out), frame(x, wide))
    (work,) = section_work(Section(name="section", rows=rows, output=out))
    sizes = Sizes(B=2, N=5, D=7)
    assert work.bytes_moved(sizes)[Holds.ACTIVATIONS] == 2 * (2 * 7 * 2) + 2 * 5 * 7 * 4


def test_what_is_made_for_a_moment_is_written_and_read() -> None:
    out, moment = Tensor("out", ("B",), DType.BF16), Tensor("moment", ("B",), DType.FP32)
    row = Row(name="rotary_emb", reads=(), writes=(out,), temporaries=(moment,))
    (work,) = section_work(Section(name="section", rows=(row,), output=out))
    assert work.bytes_moved(Sizes(B=10))[Holds.ACTIVATIONS] == 10 * (2 + 2 * 4)


def test_the_weights_of_experts_are_those_of_the_experts_that_are_used() -> None:
    def experts(batch_size: int) -> int:
        step = last_pass(generated("mixtral-8x7b", batch_size=batch_size))
        done = (each for each in forward_work(step) if each.work.name == "grouped_mm")
        return sum(each.times * each.bytes_moved[Holds.WEIGHTS] for each in done)

    one = 32 * 3 * 14336 * 4096 * 2  # of all layers, gate, up and down
    assert experts(1) == 2 * one
    assert 7.9 * one < experts(16) < 8 * one
    assert experts(100_000) == 8 * one


def test_the_number_of_used_experts_is_the_mean_of_even_choices() -> None:
    num_experts, chosen, tokens, trials = 16, 3, 5, 4000
    draw = random.Random(1)
    used = [
        len({each for _ in range(tokens) for each in draw.sample(range(num_experts), chosen)}) for _ in range(trials)
    ]
    assert used_experts(Sizes(X=num_experts, Y=chosen, B=tokens, S=1)) == pytest.approx(sum(used) / trials, rel=0.01)
