"""Searches: the answer fits, the next larger does not, as trying every size says."""

import random
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Any

import pytest

import calc
from calc import ConfigError, Scenario, hardware
from calc.model_source import load_config, load_model
from calc.plan import SUPPORTED
from calc.scenario import LARGEST_SIZE, Attention, Loss, Optimizer, Precision, Recompute
from calc.solution import OF_INFERENCE, Limit, Maximise, _growing, _largest, needed_bytes, with_num_layers
from calc.tradeoff import recompute_tradeoffs

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 97,
}
QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 16, "num_key_value_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "tied": {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 1},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 97, "n_positions": 30},
    "mistral": {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 33},
    "later layers slide": {
        **QWEN3, "num_hidden_layers": 5, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2,
    },
    "listed": {
        **QWEN3, "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 20,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
}  # fmt: skip
LARGEST_TRIED = 40


def asked(**fields: Any) -> Scenario:
    return Scenario.model_validate(fields)


def built(field: str, words: type[StrEnum]) -> list[str]:
    """The values of a field that are supported."""
    return sorted(SUPPORTED.get(field, set(words)))


@pytest.fixture
def gpu_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], str]:
    """Puts a GPU of so many bytes into the catalogue and returns its name."""

    def put(capacity_bytes: int) -> str:
        tiny = replace(
            hardware.gpu_named("h100-sxm-80gb"),
            name="tiny", memory_bytes=capacity_bytes, usable_memory_bytes=None,
        )  # fmt: skip
        known = {**hardware._gpus_by_name(), "tiny": tiny}
        monkeypatch.setattr(hardware, "_gpus_by_name", lambda: known)
        return tiny.name

    monkeypatch.setattr(hardware, "_gpus_by_name", hardware._gpus_by_name)
    return put


def with_size(scenario: Scenario, sought: str, size: int) -> Scenario:
    """The scenario written anew, as a person would."""
    fields = scenario.model_dump(exclude_defaults=True)
    if sought == "adapter.rank":
        fields["adapter"]["rank"] = size
    elif sought == "num_layers":
        fields["model"] = with_num_layers(fields["model"], size)
    else:
        fields[sought] = size
    return asked(**fields)


def random_scenario(rng: random.Random, sought: str) -> Scenario:
    adapter = {"rank": 4, "dropout": rng.choice([0.0, 0.1])}
    return asked(
        model=rng.choice(list(MODELS.values())),
        gpu="h100-sxm-80gb",
        micro_batch_size=rng.randint(1, 4),
        sequence_length=rng.randint(1, 30),
        gradient_accumulation_steps=rng.randint(1, 2),
        precision=rng.choice([Precision.BF16_AUTOCAST, Precision.FP16_AUTOCAST, Precision.BF16]),
        attention=rng.choice(["eager", "auto"]),
        optimizer=rng.choice(built("optimizer", Optimizer)),
        recompute=rng.choice(list(Recompute)),
        adapter=adapter if sought == "adapter.rank" or rng.random() < 0.3 else None,
    )


def all_answers(scenario: Scenario, sought: str) -> dict[int, calc.Estimate]:
    answers = {}
    for size in range(1, LARGEST_TRIED + 1):
        try:
            answers[size] = calc.estimate(with_size(scenario, sought, size))
        except ConfigError:
            continue
    return answers


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sought", list(Maximise))
def test_trying_every_size_finds_the_same(sought: str, seed: int, gpu_of: Callable[[int], str]) -> None:
    rng = random.Random(f"{sought} {seed}")
    scenario = random_scenario(rng, sought)
    needs = {size: needed_bytes(answer.memory) for size, answer in all_answers(scenario, sought).items()}
    if not needs:
        with pytest.raises(ConfigError):
            calc.solve(scenario, maximise=sought)
        return
    least = min(needs)
    nearby = (needed + rng.randint(-600, 600) for needed in rng.sample(list(needs.values()), min(2, len(needs))))
    for capacity in (needs[least] - 1, needs[least], *nearby):
        fitting = [size for size, needed in needs.items() if needed <= capacity]
        if fitting and fitting[-1] == LARGEST_TRIED:
            continue  # larger ones may fit too
        solution = calc.solve(scenario.model_copy(update={"gpu": gpu_of(capacity)}), maximise=sought)
        assert solution.value == max(fitting, default=None)
        if (next_size := max(fitting, default=least - 1) + 1) in needs:
            assert solution.limit is Limit.MEMORY
            assert solution.next_estimate is not None
            assert needed_bytes(solution.next_estimate.memory) == needs[next_size] > capacity
        else:
            assert solution.limit is Limit.REFUSED
        assert solution.next_value == next_size
        assert needed_bytes(solution.estimate.memory) == needs[max(fitting, default=least)]
        assert solution.estimate.memory.fits is (solution.value is not None)


def growing(scenario: Scenario, sought: str) -> list[range]:
    rank_one = {1: calc.estimate(with_size(scenario, sought, 1))} if sought == "adapter.rank" else {}
    return _growing(scenario, Maximise(sought), load_model(scenario.model), rank_one)


@pytest.mark.parametrize("attention", built("attention", Attention))
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sought", ["micro_batch_size", "sequence_length"])
def test_all_sizes_of_a_range_share_one_ledger(model: str, sought: str, attention: str) -> None:
    """So between them memory cannot fall."""
    scenario = asked(model=MODELS[model], micro_batch_size=2, sequence_length=10, precision="bf16", attention=attention)
    answers = all_answers(scenario, sought)
    for sizes in growing(scenario, sought):
        assert len({id(answers[size].step.step) for size in sizes[:LARGEST_TRIED] if size in answers}) <= 1


@pytest.mark.parametrize("optimizer", built("optimizer", Optimizer))
@pytest.mark.parametrize("sought", list(Maximise))
def test_in_a_range_memory_never_falls(sought: str, optimizer: str) -> None:
    wide = {**LLAMA, "hidden_size": 4096, "num_hidden_layers": 1}
    for model, precision in ((LLAMA, "bf16-autocast"), (MODELS["later layers slide"], "bf16"), (wide, "bf16")):
        scenario = asked(
            model=model, optimizer=optimizer, precision=precision, sequence_length=10, attention="eager",
            adapter={"rank": 4} if sought == "adapter.rank" else None,
        )  # fmt: skip
        answers = all_answers(scenario, sought)
        for sizes in growing(scenario, sought):
            peaks = [answers[size].memory.peak_allocated_bytes for size in sizes[:LARGEST_TRIED] if size in answers]
            assert peaks == sorted(peaks)


def test_in_a_range_of_batches_memory_never_falls_where_a_kernel_splits_its_work() -> None:
    model = {**QWEN3, "head_dim": 160, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    attention = "efficient" if "efficient" in built("attention", Attention) else "eager"
    scenario = asked(model=model, precision="bf16", sequence_length=129, attention=attention)
    answers = all_answers(scenario, "micro_batch_size")
    for sizes in growing(scenario, "micro_batch_size"):
        peaks = [answers[size].memory.peak_allocated_bytes for size in sizes[:LARGEST_TRIED] if size in answers]
        assert peaks == sorted(peaks)


@pytest.mark.parametrize("sought", ["micro_batch_size", "sequence_length"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-autocast"])
@pytest.mark.parametrize("loss", [Loss.CHUNKED_CROSS_ENTROPY, Loss.FUSED_LINEAR_CROSS_ENTROPY])
def test_in_a_range_memory_never_falls_where_chunks_grow(loss: Loss, precision: str, sought: str) -> None:
    model = {**LLAMA, "hidden_size": 256, "intermediate_size": 16, "vocab_size": 512, "num_hidden_layers": 1}
    scenario = asked(
        model=model, loss=loss, precision=precision, optimizer="sgd", attention="eager", micro_batch_size=3,
        sequence_length=5,
    )  # fmt: skip
    answers = all_answers(scenario, sought)
    if (loss, precision, sought) == (Loss.FUSED_LINEAR_CROSS_ENTROPY, "bf16-autocast", "micro_batch_size"):
        peaks = [answer.memory.peak_allocated_bytes for answer in answers.values()]
        assert peaks != sorted(peaks)
    ranges = _growing(scenario, Maximise(sought), load_model(model), answers)
    assert sorted(size for sizes in ranges for size in sizes[:LARGEST_TRIED] if size <= LARGEST_TRIED) == list(answers)
    for sizes in ranges:
        peaks = [answers[size].memory.peak_allocated_bytes for size in sizes[:LARGEST_TRIED] if size in answers]
        assert peaks == sorted(peaks)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize("adapter", [None, {"rank": 4}])
def test_more_layers_never_need_less(model: str, recompute: Recompute, adapter: dict[str, int] | None) -> None:
    for precision in (Precision.BF16_AUTOCAST, Precision.BF16):
        scenario = asked(
            model=MODELS[model], recompute=recompute, adapter=adapter, precision=precision, attention="eager"
        )
        peaks = [answer.memory.peak_allocated_bytes for answer in all_answers(scenario, "num_layers").values()]
        assert peaks == sorted(peaks)
        assert len(peaks) == (4 if model == "listed" else LARGEST_TRIED)


def test_a_range_that_needs_less_is_found_above_one_that_needs_more() -> None:
    below, above = range(1, 10), range(10, 1000)
    for ranges in ([above, below], [below, above]):
        assert _largest({1, 2, 3, 10, 11, 12, 13}.__contains__, ranges, guess=2) == 13
        assert _largest({1, 2, 3}.__contains__, ranges, guess=500) == 3
        assert _largest(set[int]().__contains__, ranges, guess=1) is None


@pytest.mark.parametrize("guess", [1, 6, 7, 8, 100, LARGEST_SIZE])
def test_where_the_search_begins_changes_no_answer(guess: int) -> None:
    for largest in (1, 6, 7, 8, 1000, LARGEST_SIZE):
        ranges = [range(2, LARGEST_SIZE + 1), range(1, 2)]
        assert _largest(lambda size, largest=largest: size <= largest, ranges, guess) == largest


def test_ranges_may_interleave() -> None:
    evens, odds = range(2, LARGEST_SIZE + 1, 2), range(1, LARGEST_SIZE + 1, 2)
    for last_even, last_odd in ((10, 7), (10, 9), (10, 11), (10, 333)):
        for ranges in ([evens, odds], [odds, evens]):

            def fits(size: int, last: tuple[int, int] = (last_even, last_odd)) -> bool:
                return size <= last[size % 2]

            assert _largest(fits, ranges, guess=1) == max(last_even, last_odd)


def test_a_search_takes_few_answers() -> None:
    for largest in (1, 1000, 10**6, LARGEST_SIZE):
        asked = set()
        ranges = [range(2, LARGEST_SIZE + 1), range(1, 2)]
        _largest(lambda size, asked=asked, largest=largest: not asked.add(size) and size <= largest, ranges, guess=1)
        assert len(asked) <= 60


def test_learned_positions_are_a_limit() -> None:
    solution = calc.solve(asked(model="gpt2", gpu="h100-sxm-80gb"), maximise="sequence_length")
    assert (solution.value, solution.limit, solution.next_value) == (1024, Limit.REFUSED, 1025)
    assert solution.next_estimate is None
    assert solution.reason.startswith("sequence_length = 1025: should be at most 1024")


def test_what_the_kernel_does_not_take_is_a_limit() -> None:
    scenario = asked(model=MODELS["mistral"], gpu="h100-sxm-80gb", attention="flash", sequence_length=1000)
    solution = calc.solve(scenario, maximise="sequence_length")
    assert (solution.value, solution.limit) == (32, Limit.REFUSED)
    assert solution.reason.startswith("sequence_length = 33: attention = 'flash': a sliding window of 33 tokens")


def test_the_largest_size_is_a_limit(gpu_of: Callable[[int], str]) -> None:
    scenario = asked(model=LLAMA, gpu=gpu_of(10**18), sequence_length=1, adapter={"rank": 1})
    for sought in sorted(set(Maximise) - OF_INFERENCE):
        solution = calc.solve(scenario, maximise=sought)
        assert (solution.value, solution.limit, solution.next_value) == (LARGEST_SIZE, Limit.LARGEST_SIZE, None)
        assert "1,000,000,000" in solution.reason


def test_what_never_fits_is_an_answer() -> None:
    solution = calc.solve(asked(model="gpt3-175b", gpu="rtx-4090"), maximise="micro_batch_size")
    assert (solution.value, solution.limit, solution.next_value) == (None, Limit.MEMORY, 1)
    assert solution.estimate == solution.next_estimate
    assert solution.estimate.memory.fits is False
    assert solution.reason.startswith("micro_batch_size = 1 needs ")


def test_what_the_scenario_says_of_the_field_does_not_matter() -> None:
    for sought, given in {"micro_batch_size": (1, 3, 4096, LARGEST_SIZE), "sequence_length": (None, 1, 5000)}.items():
        scenarios = [asked(model="gpt2", gpu="rtx-4090", **{sought: size}) for size in given]
        solutions = [calc.solve(scenario, maximise=sought).to_dict() for scenario in scenarios]
        assert all(solution == solutions[0] for solution in solutions)


def test_layers_keep_what_the_config_says_of_them() -> None:
    config = dict(load_config("gpt2"))
    assert with_num_layers(config, 3) == {**config, "n_layer": 3, "num_hidden_layers": 3}
    listed = with_num_layers(MODELS["listed"], 3)
    assert listed["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    solution = calc.solve(asked(model=MODELS["listed"], gpu="rtx-4090", attention="eager"), maximise="num_layers")
    assert (solution.value, solution.limit) == (4, Limit.REFUSED)
    assert "model.layer_types" in solution.reason
    assert "should list 5" in solution.reason


@pytest.mark.parametrize(
    "scenario",
    [
        {"model": "llama-3.1-8b", "precision": "bf16"},
        {"model": "gpt2"},
        {"model": "gpt2", "micro_batch_size": 8},
        {"model": "llama-3.1-8b"},
        {"model": "llama-3.1-70b", "adapter": {"rank": 16}, "precision": "bf16", "recompute": "full"},
        {"model": "gpt3-175b"},
    ],
    ids=str,
)
def test_the_smallest_gpu_is_the_first_that_fits(scenario: dict[str, Any]) -> None:
    cuda = [gpu for gpu in calc.gpus() if gpu.compute_capability is not None]
    ordered = sorted(cuda, key=lambda gpu: (gpu.capacity_bytes, gpu.memory_bandwidth_bytes_per_second))
    answers = [calc.estimate(asked(**scenario, gpu=gpu.name)) for gpu in ordered]
    first = next((index for index, answer in enumerate(answers) if answer.memory.fits), None)
    solution = calc.solve(asked(**scenario), minimise="gpu")
    if first is None:
        assert (solution.value, solution.next_value) == (None, ordered[-1].name)
    else:
        assert solution.value == ordered[first].name == solution.estimate.scenario.gpu
        assert solution.next_value == (ordered[first - 1].name if first else None)
        assert solution.limit is (Limit.MEMORY if first else None)


def test_the_cheapest_recomputation_has_the_fewest_flops_of_those_that_fit() -> None:
    chosen = set()
    deep = {**LLAMA, "hidden_size": 512, "num_hidden_layers": 24}
    for size in range(1, 400, 30):
        scenario = asked(
            model=deep, gpu="rtx-4090", micro_batch_size=size, sequence_length=1024, recompute="full",
            recompute_interval=2, use_liger_kernel=True,
        )  # fmt: skip
        fitting = [way.recompute_flops for way in recompute_tradeoffs(scenario) if way.estimate.memory.fits]
        solution = calc.solve(scenario, minimise="recompute")
        found = solution.estimate
        assert (solution.value is not None) == bool(fitting) == found.memory.fits
        if fitting:
            assert found.flops.recompute == min(fitting)
            assert solution.value == found.scenario.recompute
        chosen.add((solution.value, found.scenario.recompute_interval))
    assert {value for value, _ in chosen} >= {"none", "full"}
    assert len({interval for _, interval in chosen}) > 1


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({}, ["maximise", "one of maximise and minimise"]),
        ({"maximise": "num_layers", "minimise": "gpu"}, ["maximise = 'num_layers'", "one of"]),
        ({"maximise": "batch"}, ["maximise = 'batch'", "micro_batch_size, sequence_length"]),
        ({"minimise": "model"}, ["minimise = 'model'", "gpu, recompute"]),
        ({"maximise": "adapter.rank"}, ["adapter = None", "is required"]),
    ],
)
def test_what_cannot_be_asked_is_named(question: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        calc.solve(asked(model="gpt2", gpu="rtx-4090"), **question)
    assert all(word in str(refusal.value) for word in words)


@pytest.mark.parametrize("question", [{"maximise": "micro_batch_size"}, {"minimise": "recompute"}])
def test_what_fits_needs_a_gpu(question: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="gpu = None: is required"):
        calc.solve(asked(model="gpt2"), **question)


def test_a_length_that_the_config_fixes_is_not_sought() -> None:
    with pytest.raises(ConfigError, match="maximise = 'sequence_length': has one value only: of an image of 224"):
        calc.solve(Scenario(model="vit-base-patch16-224", gpu="rtx-4090"), maximise="sequence_length")


def test_what_no_size_answers_is_refused_as_ever() -> None:
    with pytest.raises(ConfigError, match="sequence_length = 5000"):
        calc.solve(asked(model="gpt2", gpu="rtx-4090", sequence_length=5000), maximise="micro_batch_size")


def test_the_json_says_all() -> None:
    solution = calc.solve(asked(model="gpt2", gpu="rtx-4090"), maximise="micro_batch_size")
    answer = solution.to_dict()
    assert solution.next_estimate is not None
    assert isinstance(solution.value, int)
    assert answer | {"estimate": None} == {
        "maximise": "micro_batch_size",
        "minimise": None,
        "value": solution.value,
        "limit": "memory",
        "reason": solution.reason,
        "next_value": solution.value + 1,
        "next_needed_bytes": needed_bytes(solution.next_estimate.memory),
        "estimate": None,
    }
    assert answer["estimate"]["scenario"]["micro_batch_size"] == solution.value


@pytest.mark.parametrize(("gpu", "vendor"), [("mi210-64gb", "AMD"), ("h100-sxm-80gb", "NVIDIA"), (None, "NVIDIA")])
def test_the_smallest_gpu_is_of_the_same_vendor(gpu: str | None, vendor: str) -> None:
    for micro_batch_size in (1, 4, 16, 64):
        found = calc.solve(Scenario(model="gpt2", gpu=gpu, micro_batch_size=micro_batch_size), minimise="gpu").value
        assert isinstance(found, str)
        assert hardware.gpu_named(found).vendor == vendor


@pytest.mark.parametrize("sought", sorted(OF_INFERENCE))
@pytest.mark.parametrize("model", ["llama-3.2-1b", "qwen3-0.6b"])
def test_the_next_larger_inference_does_not_fit(model: str, sought: Maximise) -> None:
    """Lengths may end at the model's positions before: these reach far."""
    config = {**load_config(model), "max_position_embeddings": 10**7}
    scenario = asked(model=config, gpu="rtx-4090", task="inference", prompt_length=100, output_length=10, batch_size=3)
    solution = calc.solve(scenario, maximise=sought)
    assert isinstance(solution.value, int)
    inside, beyond = (
        calc.estimate(scenario.model_copy(update={sought.value: value}))
        for value in (solution.value, solution.value + 1)
    )
    assert (inside.memory.fits, beyond.memory.fits) == (True, False)


@pytest.mark.parametrize(("task", "sought"), [("inference", "micro_batch_size"), ("training", "batch_size")])
def test_a_task_has_sizes_of_its_own(task: str, sought: str) -> None:
    with pytest.raises(calc.ConfigError, match=f"with task = {task}") as refusal:
        calc.solve(asked(model="gpt2", gpu="rtx-4090", task=task), maximise=sought)
    assert (refusal.value.field, refusal.value.value) == ("maximise", sought)
