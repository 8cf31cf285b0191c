"""Recomputation: what it keeps, what it computes again, and that it never keeps more but where the ledger says why."""

from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from calc import Adapter, ConfigError, Estimate, Scenario, estimate
from calc.scenario import AdapterKind, Recompute

GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 4, "vocab_size": 97, "n_positions": 128}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 100,
    "vocab_size": 97,
}
B, S, H, N, D, K = 2, 33, 64, 4, 16, 2
MODELS = {"gpt2": GPT2, "llama": LLAMA}


def answered(model: Any, recompute: str, **choices: Any) -> Estimate:
    sizes: dict[str, Any] = {"micro_batch_size": B, "sequence_length": S}
    return estimate(Scenario(model=model, recompute=Recompute(recompute), **sizes | choices))


def saved_of_a_layer(model: Any, recompute: str, **choices: Any) -> int:
    saved = answered(model, recompute, **choices).memory.saved_activation_bytes_per_layer
    assert isinstance(saved, int)
    return saved


def rounded(num_bytes: int) -> int:
    return -(-num_bytes // 512) * 512


@pytest.mark.parametrize(("precision", "itemsize"), [("bf16", 2), ("fp16", 2), ("fp32", 4), ("bf16-autocast", 4)])
@pytest.mark.parametrize("model", MODELS)
def test_full_keeps_the_residual_stream_alone(model: str, precision: str, itemsize: int) -> None:
    saved = saved_of_a_layer(MODELS[model], "full", precision=precision, attention="eager")
    assert saved == rounded(itemsize * B * S * H)


def test_full_runs_a_layer_again_but_for_its_last_product() -> None:
    again = answered(GPT2, "full", attention="eager", dropout=0).flops.recompute
    products = 2 * B * S * (3 * H * H + H * H + 4 * H * H) + 4 * B * N * S * S * D
    # Early stop: the last tensor a node keeps is the input of the MLP's second product, which is not run again.
    assert again == 4 * products
    # The dropout after it keeps a mask: with it, it is.
    second_product = 2 * B * S * 4 * H * H
    assert answered(GPT2, "full", attention="eager", dropout=0.1).flops.recompute == 4 * (products + second_product)


@pytest.mark.parametrize("model", MODELS)
def test_selective_runs_the_attention_core_again(model: str) -> None:
    flops = answered(MODELS[model], "selective", attention="eager", precision="bf16").flops
    # The scores alone: what the product with the values makes no node inside keeps.
    assert flops.recompute == 4 * 2 * B * N * S * S * D


def test_selective_runs_the_flash_kernel_again() -> None:
    flops = answered(LLAMA, "selective", attention="flash", precision="bf16").flops
    assert flops.recompute == 4 * 2 * (2 * B * N * S * S * D)


def test_nothing_is_computed_again_without_recomputation() -> None:
    assert answered(LLAMA, "none").flops.recompute == 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_forward_and_backward_flops_stay(model: str, recompute: str) -> None:
    plain, again = (answered(MODELS[model], each, attention="eager").flops for each in ("none", recompute))
    assert (again.forward, again.backward) == (plain.forward, plain.backward)
    assert again.total == plain.total + again.recompute
    assert again.model_flops_per_token == plain.model_flops_per_token


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("attention", ["eager", "flash"])
def test_the_last_layer_is_like_the_others(model: str, attention: str) -> None:
    few, more = (
        answered(MODELS[model] | {"n_layer": count, "num_hidden_layers": count}, "full", attention=attention)
        for count in (4, 5)
    )
    layer = few.memory.saved_activation_bytes_per_layer
    assert more.memory.saved_activation_bytes - few.memory.saved_activation_bytes == layer


@pytest.mark.parametrize("precision", ["bf16-autocast", "fp16-autocast"])
def test_selective_with_flash_under_autocast_keeps_more_on_rotary_models(precision: str) -> None:
    """A rotary embedding makes q and k fp32. Without a checkpoint flash keeps their casts; with one their fp32 selves.

    v, of the compute type, is kept by both. What the kernel made is no longer kept, but for its output, which the
    output projection keeps: logsumexp and the generator's state and offset.
    """
    plain = saved_of_a_layer(LLAMA, "none", precision=precision, attention="flash")
    selective = saved_of_a_layer(LLAMA, "selective", precision=precision, attention="flash")
    fp32, low = (rounded(size * B * S * N * D) + rounded(size * B * S * K * D) for size in (4, 2))
    logsumexp_and_generator = rounded(4 * B * N * S) + 512 + 512
    assert selective - plain == fp32 - low - logsumexp_and_generator > 0


choices = st.fixed_dictionaries(
    {
        "model": st.sampled_from((GPT2, LLAMA, LLAMA | {"model_type": "qwen3", "head_dim": 24})),
        "precision": st.sampled_from(("bf16", "fp16", "bf16-autocast", "fp16-autocast", "zero-16")),
        "attention": st.sampled_from(("eager", "flash")),
        "micro_batch_size": st.integers(1, 4),
        "sequence_length": st.integers(64, 128),
        "adapter": st.none() | st.just(Adapter(dropout=0.1)),
    }
)


def keeps_more(case: dict[str, Any]) -> bool:
    """The one case in which selective recomputation keeps more; see above.

    (Eager attention too, of sequences so short that q and k outweigh the scores.)
    """
    return case["model"] is not GPT2 and case["attention"] == "flash" and "autocast" in case["precision"]


@settings(max_examples=40)
@given(case=choices)
def test_recomputation_never_keeps_more(case: dict[str, Any]) -> None:
    model = case["model"]
    kept = {
        each: answered(model, each, **{name: value for name, value in case.items() if name != "model"})
        for each in ("none", "selective", "full")
    }
    note(case)
    saved = {each: answer.memory.saved_activation_bytes for each, answer in kept.items()}
    seen = {each: answer.memory.autograd_saved_bytes for each, answer in kept.items()}
    assert saved["full"] <= saved["none"]
    assert seen["full"] <= seen["none"]
    if not keeps_more(case):
        assert saved["selective"] <= saved["none"]
        assert seen["selective"] <= seen["none"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["bf16", "bf16-autocast"])
@pytest.mark.parametrize("attention", ["eager", "flash"])
def test_a_note_says_so(model: str, precision: str, attention: str) -> None:
    case = {"model": MODELS[model], "precision": precision, "attention": attention}
    notes = answered(MODELS[model], "selective", precision=precision, attention=attention).notes
    assert any("selective keeps more" in each for each in notes) == keeps_more(case)


# --- of several layers in a row -------------------------------------------------------------------------------------

SEVEN = {"gpt2": GPT2 | {"n_layer": 7}, "llama": LLAMA | {"num_hidden_layers": 7}}


@pytest.mark.parametrize("model", SEVEN)
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_every_nth_layer_is_computed_again(model: str, recompute: str) -> None:
    """Layers 0, 3 and 6 of seven are checkpointed."""
    plain, every, third = (
        answered(SEVEN[model], kind, attention="eager", precision="bf16", **choice)
        for kind, choice in (("none", {}), (recompute, {}), (recompute, {"recompute_interval": 3}))
    )
    assert third.flops.recompute * 7 == every.flops.recompute * 3
    of_four_layers = third.memory.saved_activation_bytes - every.memory.saved_activation_bytes
    kept = [each.memory.saved_activation_bytes_per_layer for each in (plain, every)]
    assert isinstance(kept[0], int)
    assert isinstance(kept[1], int)
    assert of_four_layers == 4 * (kept[0] - kept[1])
    assert third.parameters == plain.parameters
    assert third.flops.attention == plain.flops.attention


@pytest.mark.parametrize("model", SEVEN)
def test_a_group_keeps_one_input(model: str) -> None:
    """Seven layers in groups of three: three inputs are kept, not seven."""
    single, groups = (
        answered(SEVEN[model], "full", attention="eager", precision="bf16", dropout=0.0, recompute_group_size=size)
        for size in (1, 3)
    )
    spared = single.memory.saved_activation_bytes - groups.memory.saved_activation_bytes
    assert spared == (7 - 3) * rounded(2 * B * S * H)
    # Only a region's own last product is spared by the early stop: of three groups, not of seven layers.
    assert groups.flops.recompute > single.flops.recompute
    assert groups.parameters == single.parameters


def test_tensors_of_layers_in_a_row_are_counted_together() -> None:
    tensors = answered(SEVEN["llama"], "full", recompute_group_size=3).tensors
    [weight] = [each for each in tensors if each.name == "mlp.up_proj.weight"]
    assert weight.count == weight.count_at_peak == 7


@pytest.mark.parametrize(
    ("choices", "field", "expected"),
    [
        ({"recompute_interval": 2}, "recompute_interval", "unless recompute is full, operators, selective"),
        ({"recompute": "selective", "recompute_group_size": 2}, "recompute_group_size", "unless recompute is full"),
        ({"recompute": "full", "recompute_group_size": 8}, "recompute_group_size", "at most 7"),
        ({"recompute": "full", "recompute_interval": 2, "recompute_group_size": 2}, "recompute_interval", "either"),
    ],
)
def test_what_cannot_be(choices: dict[str, Any], field: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        answered(SEVEN["llama"], **{"recompute": "none"} | choices)
    assert refusal.value.field == field
    assert expected in refusal.value.expected


def test_a_group_has_one_mask() -> None:
    mixed = LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    with pytest.raises(ConfigError, match=r"^recompute_group_size = 2: should be 1: .* a mask each"):
        answered(mixed, "full", recompute_group_size=2)
    assert answered(mixed, "full", recompute_interval=2, attention="eager").flops.recompute > 0


def test_a_million_layers_in_groups() -> None:
    tall = answered(LLAMA | {"num_hidden_layers": 10**6}, "full", recompute_group_size=64)
    assert len(tall.step.runs) == 4
    assert tall.parameters.total > 10**10


# --- with what is kept in host memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "checkpointed"), [(1, 7), (3, 3)])
def test_offloaded_inputs_are_not_on_the_gpu(interval: int, checkpointed: int) -> None:
    here, away = (
        answered(SEVEN["llama"], "full", precision="bf16", recompute_interval=interval, recompute_offload=offload)
        for offload in (False, True)
    )
    one = rounded(2 * B * S * H)
    assert (here.memory.offloaded_bytes, away.memory.offloaded_bytes) == (0, checkpointed * one)
    # The loop's last hidden states live on as the head's input either way; the first are the embedding's output.
    assert here.memory.saved_activation_bytes - away.memory.saved_activation_bytes == checkpointed * one
    assert away.flops == here.flops


def test_each_layer_of_gpt2_takes_its_mask_along() -> None:
    """It is an argument by position, which checkpoint saves; Llama's is held by the closure."""
    memory = answered(SEVEN["gpt2"], "full", attention="eager", precision="bf16", recompute_offload=True).memory
    assert memory.offloaded_bytes == 7 * (rounded(2 * B * S * H) + rounded(2 * B * S * S))


@pytest.mark.parametrize(
    "choices", [{}, {"recompute": "selective"}, {"recompute": "full", "recompute_group_size": 2}], ids=str
)
def test_what_cannot_be_offloaded(choices: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^recompute_offload = .*needs recompute = full"):
        answered(SEVEN["llama"], **{"recompute": "none"} | choices, recompute_offload=True)


# --- of all but listed operators ------------------------------------------------------------------------------------


def kept_by_a_layer_of_gpt2(*operators: str) -> int:
    """Beyond its input, in bf16 with eager attention and without dropout: nothing in it is rounded up here."""
    sizes: dict[str, Any] = {"precision": "bf16", "attention": "eager", "dropout": 0.0, "sequence_length": 64}
    full = saved_of_a_layer(GPT2, "full", **sizes)
    return saved_of_a_layer(GPT2, "operators", recompute_saved_operators=operators, **sizes) - full


def test_operators_keep_what_they_give() -> None:
    # GPT-2's Conv1D is addmm: 3H of c_attn, H of c_proj, 4H of c_fc, H of the second c_proj, of 2 bytes each.
    assert kept_by_a_layer_of_gpt2("addmm") == 2 * B * 64 * (3 + 1 + 4 + 1) * H
    # Scores and weighted values are bmm; no linear is mm here.
    assert kept_by_a_layer_of_gpt2("bmm") == 2 * B * N * 64 * 64 + 2 * B * 64 * H
    assert kept_by_a_layer_of_gpt2("mm", "_scaled_dot_product_flash_attention") == 0


def test_what_operators_give_is_not_computed_again() -> None:
    sizes: dict[str, Any] = {"attention": "eager", "dropout": 0.0}
    full = answered(GPT2, "full", **sizes).flops
    scores, values = 2 * B * N * S * S * D, 2 * B * N * S * S * D
    linears = 2 * B * S * (3 * H * H + H * H + 4 * H * H)
    assert full.recompute == 4 * (linears + scores + values)
    again = {
        operators: answered(GPT2, "operators", recompute_saved_operators=operators, **sizes).flops.recompute
        for operators in (("addmm",), ("bmm",), ("addmm", "bmm"), ("mm",))
    }
    assert again == {
        ("addmm",): 4 * (scores + values),
        ("bmm",): 4 * linears,
        ("addmm", "bmm"): 0,
        ("mm",): full.recompute,
    }


def test_linears_and_fused_attention_are_what_is_kept_where_nothing_is_said() -> None:
    for model in (GPT2, LLAMA):
        kept = answered(model, "operators", attention="flash")
        listed = answered(
            model,
            "operators",
            attention="flash",
            recompute_saved_operators=("mm", "addmm", "_scaled_dot_product_flash_attention"),
        )
        assert kept.memory == listed.memory
        assert kept.flops.recompute == 0
        assert kept.flops.total == answered(model, "none", attention="flash").flops.total


def test_the_statistics_of_a_kept_kernel_are_kept_with_its_output() -> None:
    choices: dict[str, Any] = {"attention": "flash", "precision": "bf16", "sequence_length": 64}
    operators = ("_scaled_dot_product_flash_attention",)
    kept = saved_of_a_layer(LLAMA, "operators", recompute_saved_operators=operators, **choices)
    output, logsumexp, generator = 2 * B * 64 * H, 4 * B * N * 64, 2 * 512
    assert kept - saved_of_a_layer(LLAMA, "full", **choices) == output + logsumexp + generator


def test_frozen_layers_keep_as_much() -> None:
    """transformers makes the embeddings' output require a gradient when it checkpoints layers."""
    trained, frozen = (
        answered(GPT2, "operators", frozen_layers=count, precision="bf16", attention="eager") for count in (0, 2)
    )
    assert trained.flops.recompute == frozen.flops.recompute > 0
    kept = trained.memory.saved_activation_bytes_per_layer
    assert frozen.memory.saved_activation_bytes_per_layer == [kept, kept]


def test_every_second_layer_keeps_what_operators_give() -> None:
    plain, every, second = (
        answered(GPT2, kind, attention="eager", precision="bf16", **choice)
        for kind, choice in (("none", {}), ("operators", {}), ("operators", {"recompute_interval": 2}))
    )
    assert 2 * second.flops.recompute == every.flops.recompute > 0
    kept = [each.memory.saved_activation_bytes for each in (every, second, plain)]
    assert kept == sorted(kept)


@pytest.mark.parametrize(
    ("choices", "field", "expected"),
    [
        ({"recompute": "full", "recompute_saved_operators": ("mm",)}, "recompute_saved_operators", "operators only"),
        ({"recompute_saved_operators": ("mul",)}, "recompute_saved_operators.0", "addmm"),
        ({"recompute_saved_operators": ()}, "recompute_saved_operators", "at least 1"),
        ({"use_liger_kernel": True}, "recompute", "Liger turns"),
        ({"adapter": Adapter(kind=AdapterKind.ADALORA, target_modules=("q_proj",))}, "recompute", "in place"),
        ({"adapter": Adapter(kind=AdapterKind.P_TUNING_V2)}, "recompute", "cannot run again"),
        ({"recompute_group_size": 2}, "recompute_group_size", "unless recompute is full"),
        ({"recompute_offload": True}, "recompute_offload", "needs recompute = full"),
    ],
)
def test_what_operators_do_not_go_with(choices: dict[str, Any], field: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        answered(SEVEN["llama"], **{"recompute": "operators", "sequence_length": 32} | choices)
    assert refusal.value.field == field
    assert expected in refusal.value.expected


def test_operators_beside_a_4_bit_base_come_later() -> None:
    scenario = Scenario(model="gpt2", recompute=Recompute.OPERATORS, adapter=Adapter(kind=AdapterKind.QLORA))
    with pytest.raises(ConfigError, match="not supported yet with a 4-bit base") as refusal:
        estimate(scenario)
    assert refusal.value.field == "recompute"


def test_operators_want_more_than_one_token() -> None:
    """torch.matmul folds a frozen weight's input only where its strides allow, and else runs bmm."""
    with pytest.raises(ConfigError, match="at least 2 with recompute = operators") as refusal:
        estimate(Scenario(model="gpt2", recompute=Recompute.OPERATORS, sequence_length=1))
    assert refusal.value.field == "sequence_length"
