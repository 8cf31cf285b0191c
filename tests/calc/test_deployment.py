"""Several GPUs: a rank's share of the model, and what its all-reduces add."""

from typing import Any

import pytest

from calc import ConfigError, Deployment, Scenario, deployments, estimate, estimate_plan, load_model, models
from calc.deployment import rank_of
from calc.hardware import gpu_named
from calc.kinds import Head
from calc.scenario import Task

GPU = "h100-sxm-80gb"
SIZES = {"batch_size": 64, "prompt_length": 400, "output_length": 16}


def asked(**fields: Any) -> Scenario:
    return Scenario(**{"model": "llama-3.1-8b", "task": Task.INFERENCE, "gpu": GPU, **SIZES} | fields)


def by_ranks(**fields: Any) -> dict[int, Deployment]:
    return {each.tensor_parallel: each for each in deployments(asked(**fields))}


def test_one_rank_is_the_model_itself() -> None:
    alone, answer = by_ranks()[1], estimate(asked(batch_size=8))
    assert answer.time is not None
    assert (alone.num_replicas, alone.batch_size) == (8, 8)
    assert alone.estimate.memory.peak_allocated_bytes == answer.memory.peak_allocated_bytes
    assert alone.seconds_per_output_token == answer.time.seconds_per_output_token
    assert alone.all_reduce_seconds_per_token == 0


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_ranks_together_have_every_weight_once_and_the_norms_each(ranks: int) -> None:
    ways = by_ranks()
    whole, rank = ways[1].estimate.parameters, ways[ranks].estimate.parameters
    norms = whole.by_component["norm"]
    assert ranks * (rank.total - norms) + norms == whole.total
    assert ways[ranks].estimate.memory.kv_cache_bytes == ways[1].estimate.memory.kv_cache_bytes  # as many sequences


FAMILIES = {
    str(model.config["model_type"]): model.name
    for model in models()
    if load_model(model.name).kind.head in (Head.CAUSAL_LM, Head.SEQ2SEQ_LM)
    and not any(later in model.name for later in ("llama-4", "whisper"))
}
"""A model of each that generates text; Llama 4's cache and Whisper's generation are not built."""


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_rank_of_any_family_has_its_share(family: str) -> None:
    """More where few key/value heads, a latent's weights, learned positions are on each rank, as norms are."""
    one = estimate(asked(model=FAMILIES[family]))
    rank = rank_of(one.architecture, 2)
    if rank is None:  # as falcon-7b's 71 heads, and five key/value heads in some of openelm's layers
        pairs = [(layer.num_attention_heads, layer.num_key_value_heads) for layer, _ in one.architecture.layers]
        assert any(heads % 2 or (keys % 2 and keys > 1) for heads, keys in pairs)
        return
    of_rank = estimate_plan(rank, one.step.workload, one.step.plan).parameters.by_component
    shares = {name: 2 * count / one.parameters.by_component[name] for name, count in of_rank.items() if count}
    assert shares.pop("norm", 2) == 2
    assert 1 <= shares.pop("attention") < 1.25
    assert shares.pop("mlp") == pytest.approx(1, abs=0.01)
    assert all(1 <= share < 1.2 for share in shares.values())


def test_the_ranks_together_do_every_product_once() -> None:
    ways = by_ranks(num_gpus=8)
    whole, rank = ways[1].estimate.flops, ways[8].estimate.flops
    assert whole.prefill is not None
    assert rank.prefill is not None
    # 64 sequences either way: eight models of eight each, or eight ranks that all see them.
    assert 8 * rank.prefill == 8 * whole.prefill


def test_few_key_value_heads_are_there_more_than_once() -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 100,
    }  # fmt: skip
    rank = rank_of(load_model(config), 8)
    assert rank is not None
    layer = rank.layers[0][0]
    assert (layer.num_attention_heads, layer.num_key_value_heads, layer.intermediate_size) == (1, 1, 8)
    assert rank.vocab_size == 13


def test_what_does_not_divide_is_left_out() -> None:
    assert sorted(by_ranks(model="gpt2", gpu="l4")) == [1, 2, 4]  # 12 heads
    assert sorted(by_ranks(num_gpus=6)) == [1, 2]  # 32 heads


def test_a_model_is_split_within_a_machine() -> None:
    ways = by_ranks(num_gpus=32)
    assert sorted(ways) == [1, 2, 4, 8]
    assert [way.num_replicas for way in ways.values()] == [32, 16, 8, 4]


def test_all_reduces_take_their_start_and_their_bytes() -> None:
    """Two a layer of 32 and one after the embedding, of a token of each of 16 sequences."""
    moved = 2 * (1 / 2) * (16 * 4096 * 2)
    seconds = 65 * (10e-6 + moved / (0.8 * 450e9))
    assert by_ranks()[2].all_reduce_seconds_per_token == pytest.approx(seconds)
    pcie = by_ranks(gpu="l4")[2].all_reduce_seconds_per_token
    assert pcie == pytest.approx(65 * (10e-6 + moved / (0.8 * 32e9)))


def test_an_engines_ranks_share_weights_and_pages_and_sample_from_all_logits() -> None:
    ways = by_ranks(page_size=16)
    whole, rank = (ways[ranks].estimate.engine for ranks in (1, 8))
    assert whole is not None
    assert rank is not None
    assert 8 * rank.page_bytes == whole.page_bytes
    sampled = {
        (tensor.name, tensor.bytes) for tensor in ways[8].estimate.tensors if tensor.name in ("logits", "probabilities")
    }
    assert sampled == {("logits", 1024 * 128256 * 2), ("probabilities", 1024 * 128256 * 4)}
    alone = estimate(asked(page_size=16, batch_size=8))
    assert alone.engine is not None
    assert alone.time is not None
    assert ways[1].most_sequences == 8 * alone.engine.to_dict(32 * 2**20)["most_sequences"]
    assert ways[1].prefill_seconds == alone.time.prefill_seconds


def test_each_pass_of_an_engine_begins_its_all_reduces() -> None:
    fields: dict[str, Any] = {"page_size": 16, "max_num_seqs": 64}
    few, many = (by_ranks(**fields, max_num_batched_tokens=tokens)[8] for tokens in (25600, 256))
    computing = [way.estimate.time.prefill_seconds for way in (few, many) if way.estimate.time]
    links = [(way.prefill_seconds or 0) - seconds for way, seconds in zip((few, many), computing, strict=True)]
    assert links[1] - links[0] == pytest.approx(99 * 65 * 10e-6)


def test_copies_run_as_many_sequences_as_max_num_seqs_says() -> None:
    assert sorted(by_ranks(page_size=16, max_num_seqs=16)) == [1, 2]
    with pytest.raises(ConfigError, match="batch_size = 64: should be at most 32: max_num_seqs of 8 copies"):
        by_ranks(page_size=16, max_num_seqs=4)


def test_the_most_sequences_are_the_last_that_fit() -> None:
    ways = by_ranks()
    one = ways[1].most_sequences // 8
    assert estimate(asked(batch_size=one)).memory.fits
    assert not estimate(asked(batch_size=one + 1)).memory.fits
    large = by_ranks(model="llama-3.1-70b")
    assert (large[1].most_sequences, large[1].estimate.memory.fits) == (0, False)
    assert 0 < large[2].most_sequences < large[4].most_sequences


def test_throughput_is_that_of_all_replicas() -> None:
    for way in deployments(asked(batch_size=64)):
        assert way.seconds_per_output_token is not None
        assert way.output_tokens_per_second == pytest.approx(64 / way.seconds_per_output_token)
        assert way.to_dict()["tensor_parallel"] * way.num_replicas == 8


def test_without_a_links_speed_only_replicas_have_a_time() -> None:
    assert gpu_named("a30").link_bytes_per_second["nvlink"] is None
    ways = by_ranks(gpu="a30", model="qwen3-0.6b")
    assert ways[1].seconds_per_output_token is not None
    assert (ways[2].seconds_per_output_token, ways[2].output_tokens_per_second) == (None, None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": Task.TRAINING, **dict.fromkeys(SIZES)}, "task = 'training'"),
        ({"gpu": None}, "gpu = None"),
        ({"adapter": {"kind": "lora"}}, "adapter.kind = 'lora': is not supported yet with several GPUs"),
        ({"model": "t5-base"}, "num_gpus = 8: is not supported yet for an encoder-decoder"),
    ],
)
def test_what_cannot_be_asked_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        deployments(asked(**fields))
