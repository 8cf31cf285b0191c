"""The Estimate: its keys, its sums, what grows with what, and small steps counted by hand."""

import json
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calc import Adapter, ConfigError, Estimate, Scenario, estimate, estimate_plan, gpus, load_model
from calc.device_memory import ASSUMED_CONTEXT_BYTES
from calc.plan import ADAMW, RECIPE_PRECISIONS, SUPPORTED, Plan, Workload
from calc.scenario import (
    ADAPTER_FIELDS,
    AdapterDType,
    AdapterKind,
    Attention,
    Implementation,
    Loss,
    Optimizer,
    Precision,
    Recompute,
)

GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 96, "n_positions": 128}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 100,
    "vocab_size": 96,
}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 24}
MODELS = {"gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3}
B, S = 2, 32


def answered(model: Any = "gpt2", **choices: Any) -> Estimate:
    sizes: dict[str, Any] = {"micro_batch_size": B, "sequence_length": S}
    return estimate(Scenario(model=MODELS.get(model, model) if isinstance(model, str) else model, **sizes | choices))


# --- the contract's keys -------------------------------------------------------------------------------------------

KEYS_OF_THE_CONTRACT = {
    "parameters": "total trainable frozen active_per_token by_component",
    "memory": (
        "persistent_bytes saved_activation_bytes autograd_saved_bytes saved_activation_bytes_per_layer phases "
        "first_step_peak_allocated_bytes peak_allocated_bytes peak_phase at_peak library_workspace_bytes "
        "peak_reserved_bytes device_bytes kv_cache_bytes gpu_memory_bytes fits headroom_bytes"
    ),
    "flops": (
        "forward backward recompute total elementwise model_flops_per_token model_flops_per_token_causal attention"
    ),
    "time": "",
    "tensors": "name kind shape dtype bytes alive count source",
    "notes": "",
    "accuracy": "compared_with cases median_relative_error max_relative_error underestimates",
}
OURS = {
    "engine": "",
    "scenario": "",
    "model": "",
    "memory": (
        "peak_at assumed_context_bytes checkpoint_bytes evaluation_peak_allocated_bytes timeline offloaded_bytes "
        "paged_optimizer_state_bytes usable_bytes"
    ),
    "flops": "prefill decode",
    "tensors": "formula count_at_peak",
    "accuracy": "alike",
}


def keys(part: Any) -> set[str]:
    return set(part if isinstance(part, dict) else part[0])


def test_the_keys_are_the_contracts_and_ours() -> None:
    given = answered("gpt2", gpu="h100-sxm-80gb").to_dict()
    assert given.keys() == KEYS_OF_THE_CONTRACT.keys() | OURS.keys()
    for part in ("parameters", "memory", "flops", "tensors", "accuracy"):
        assert keys(given[part]) == set(f"{KEYS_OF_THE_CONTRACT[part]} {OURS.get(part, '')}".split()), part
    assert keys(given["memory"]["persistent_bytes"]) >= {"parameters", "optimizer_states", "buffers", "inputs"}
    assert keys(given["memory"]["at_peak"]) >= {
        "parameters", "gradients", "optimizer_states", "activations", "temporaries",
    }  # fmt: skip
    assert keys(given["memory"]["phases"]) == {"name", "peak_allocated_bytes", "end_allocated_bytes"}
    assert keys(given["flops"]["attention"]) == {
        "qkv_projection", "scores", "scaling", "softmax", "values", "output_projection",
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(ADAPTER_FIELDS))
def test_it_is_json(kind: AdapterKind) -> None:
    answer = answered("llama", adapter=Adapter(kind=kind), precision="bf16", gpu="a100-sxm-80gb")
    text = json.dumps(answer.to_dict(reserved=True), allow_nan=False)
    assert json.dumps(json.loads(text)) == text


def test_what_is_not_computed_yet_is_null_and_said() -> None:
    given = answered()
    memory, notes = given.memory, " ".join(given.notes)
    assert memory.kv_cache_bytes is None
    assert given.time is None
    assert "time" in notes


def test_reserved_bytes_are_computed_when_asked_for() -> None:
    given = answered(gpu="h100-sxm-80gb")
    names = ("peak_reserved_bytes", "device_bytes")
    assert [given.to_dict()["memory"][name] for name in names] == [None, None]
    assert "reserved" not in vars(given.memory)
    memory = given.to_dict(reserved=True)["memory"]
    assert [memory[name] for name in names] == [getattr(given.memory, name) for name in names]
    assert memory["peak_reserved_bytes"] >= memory["peak_allocated_bytes"] + memory["library_workspace_bytes"]
    assert memory["device_bytes"] == memory["peak_reserved_bytes"] + memory["assumed_context_bytes"]
    assert answered().memory.device_bytes is None
    assert answered().memory.peak_reserved_bytes < memory["peak_reserved_bytes"]


def test_the_scenario_comes_back_with_its_gaps_filled() -> None:
    assert answered("gpt2", sequence_length=None).scenario.sequence_length == 128
    assert answered("gpt2").scenario.attention is Attention.FLASH


def test_an_estimate_of_a_plan_is_that_of_its_scenario() -> None:
    workload = Workload(micro_batch_size=B, sequence_length=S)
    planned = estimate_plan(load_model(LLAMA), workload, Plan(recompute=Recompute.FULL))
    asked = answered("llama", recompute="full")
    assert (planned.memory, planned.flops, planned.tensors) == (asked.memory, asked.flops, asked.tensors)
    assert planned.scenario.recompute is Recompute.FULL


def test_the_scenario_of_a_plan_has_all_of_its_choices() -> None:
    workload = Workload(micro_batch_size=B, sequence_length=S)
    plan = Plan(loss=Loss.CHUNKED_CROSS_ENTROPY, hold_outputs=False, max_grad_norm=2.0)
    assert estimate_plan(load_model(LLAMA), workload, plan).scenario.loss is plan.loss
    held = replace(plan, loss=Loss.CROSS_ENTROPY, hold_outputs=True)
    assert estimate_plan(load_model(LLAMA), workload, held).scenario.hold_outputs


# --- all combinations of supported values --------------------------------------------------------------------------

SUPPORTED_OPTIMIZERS = (*sorted(ADAMW), Optimizer.SGD, Optimizer.SGD_MOMENTUM)
ADAPTERS = (
    None,
    Adapter(target_modules=("lm_head",)),
    Adapter(rank=3, dropout=0.1, dtype=AdapterDType.BASE),
)
combinations = st.fixed_dictionaries(
    {
        "model": st.sampled_from(sorted(MODELS)),
        "precision": st.sampled_from(Precision),
        "optimizer": st.sampled_from(SUPPORTED_OPTIMIZERS),
        "attention": st.sampled_from(sorted(SUPPORTED["attention"])),
        "recompute": st.sampled_from(Recompute),
        "implementation": st.sampled_from(Implementation),
        "adapter": st.sampled_from(ADAPTERS),
        "gradient_accumulation_steps": st.sampled_from((1, 3)),
        "micro_batch_size": st.sampled_from((1, 2)),
        "sequence_length": st.sampled_from((1, 33)),
    }
)
REFUSED_PAIRS = {
    "recompute": lambda case: case["implementation"] == "megatron" and case["recompute"] == "operators",
    "sequence_length": lambda case: case["sequence_length"] == 1 and case["recompute"] == "operators",
    "implementation": lambda case: case["implementation"] == "megatron" and case["model"] != "gpt2",
    "precision": lambda case: (
        (case["implementation"] == "megatron" and "autocast" in case["precision"])
        or (case["precision"] == "bf16-weights-autocast" and MODELS[case["model"]]["model_type"] == "gpt2")
    ),
    "optimizer": lambda case: case["precision"] in RECIPE_PRECISIONS and "sgd" in case["optimizer"],
    "attention": lambda case: (
        (case["precision"] == "fp32" and case["attention"] == "flash")
        or (case["implementation"] == "megatron" and case["attention"] in {"efficient", "math"})
        or (case["attention"] == "efficient" and MODELS[case["model"]].get("num_key_value_heads") == 2)
    ),
}


@settings(max_examples=150)
@given(case=combinations)
def test_every_combination_is_answered_or_refused_by_name(case: dict[str, Any]) -> None:
    reasons = {field for field, applies in REFUSED_PAIRS.items() if applies(case)}
    if reasons:
        with pytest.raises(ConfigError) as refusal:
            answered(**case)
        assert refusal.value.field in reasons
    else:
        assert_consistent(answered(**case))


def assert_consistent(seen: Estimate) -> None:
    memory = seen.memory
    assert sum(memory.at_peak.values()) == memory.peak_allocated_bytes
    assert min(memory.at_peak.values()) >= 0
    assert max(phase.peak_allocated_bytes for phase in memory.phases) == memory.peak_allocated_bytes
    assert memory.first_step_peak_allocated_bytes <= memory.peak_allocated_bytes
    assert memory.phases[-1].end_allocated_bytes == sum(memory.persistent_bytes.values())
    assert min(memory.autograd_saved_bytes, memory.saved_activation_bytes) >= 0
    for run in seen.step.runs:
        written = [tensor.name for row in run.part.section.rows for tensor in row.writes]
        assert len(written) == len(set(written)), "a name stands for one tensor"


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["all weights", "head", "layers"])
@pytest.mark.parametrize("precision", ["bf16", "bf16-autocast", "zero-16"])
@pytest.mark.parametrize("model", MODELS)
def test_a_step_frees_what_it_made(model: str, precision: str, adapter: Adapter | None) -> None:
    assert_consistent(answered(model, precision=precision, adapter=adapter, recompute="full"))


@pytest.mark.parametrize("recompute", Recompute)
@pytest.mark.parametrize("module", ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"])
def test_a_step_with_one_adapted_module_frees_what_it_made(module: str, recompute: Recompute) -> None:
    """Rotary tables and masks are first kept by the second layer where the first one's queries need no gradient."""
    for sliding in (["full_attention"] * 5, ["full_attention", "sliding_attention"] * 2 + ["sliding_attention"]):
        model = LLAMA | {
            "model_type": "qwen2",
            "num_hidden_layers": 5,
            "use_sliding_window": True,
            "layer_types": sliding,
        }
        adapter = Adapter(target_modules=(module,))
        assert_consistent(answered(model, adapter=adapter, recompute=recompute, attention="eager"))


@pytest.mark.parametrize(
    ("precision", "implementation", "recompute"),
    [
        case
        for case in product(Precision, Implementation, Recompute)
        if not (case[1] == "megatron" and ("autocast" in case[0] or case[2] == "operators"))
        and case[0] != "bf16-weights-autocast"  # GPT-2 has LayerNorms
    ],
)
def test_eager_gpt2_with_adamw_is_always_answered(precision: Any, implementation: Any, recompute: Any) -> None:
    choices = {"precision": precision, "implementation": implementation, "recompute": recompute}
    assert answered("gpt2", attention="eager", **choices).memory.peak_allocated_bytes > 0


# --- what grows with what ------------------------------------------------------------------------------------------

GROWING = {
    "micro_batch_size": lambda size: {"micro_batch_size": size},
    "sequence_length": lambda size: {"sequence_length": size},
    "num_hidden_layers": lambda size: {"model": LLAMA | {"num_hidden_layers": size}},
    "vocab_size": lambda size: {"model": LLAMA | {"vocab_size": size}},
    "intermediate_size": lambda size: {"model": LLAMA | {"intermediate_size": size}},
    "rank": lambda size: {"adapter": Adapter(rank=size)},
}


@settings(max_examples=30)
@given(
    sizes=st.tuples(st.integers(1, 5000), st.integers(1, 5000)).map(sorted),
    attention=st.sampled_from(("eager", "flash")),
)
@pytest.mark.parametrize("name", GROWING)
def test_more_of_anything_takes_no_less(name: str, sizes: list[int], attention: str) -> None:
    fewer, more = (
        answered(**{"model": "llama", "attention": attention, "precision": "bf16"} | GROWING[name](size))
        for size in sizes
    )
    for number in ("saved_activation_bytes", "autograd_saved_bytes", "peak_allocated_bytes"):
        assert getattr(fewer.memory, number) <= getattr(more.memory, number), number
    for before, after in zip(fewer.memory.phases, more.memory.phases, strict=True):
        assert before.peak_allocated_bytes <= after.peak_allocated_bytes
    assert fewer.flops.forward <= more.flops.forward
    assert fewer.flops.backward <= more.flops.backward
    assert fewer.parameters.total <= more.parameters.total


@pytest.mark.parametrize("recompute", Recompute)
@pytest.mark.parametrize("steps", [2, 7])
def test_micro_batches_multiply_flops_alone(recompute: Recompute, steps: int) -> None:
    once, many = (answered("llama", recompute=recompute, gradient_accumulation_steps=count) for count in (1, steps))
    for name in ("forward", "backward", "recompute", "total", "elementwise"):
        assert getattr(many.flops, name) == steps * getattr(once.flops, name), name
    for name in ("model_flops_per_token", "model_flops_per_token_causal", "attention"):
        assert getattr(many.flops, name) == getattr(once.flops, name), name
    for name in ("saved_activation_bytes", "autograd_saved_bytes", "persistent_bytes"):
        assert getattr(many.memory, name) == getattr(once.memory, name), name


def test_later_micro_batches_find_gradients() -> None:
    once, twice, often = (
        answered("llama", precision="bf16", gradient_accumulation_steps=count).memory for count in (1, 2, 1000)
    )
    gradients = often.phases[1].end_allocated_bytes - sum(often.persistent_bytes.values())
    # All weights' gradients are there while the later forward runs.
    assert twice.phases[0].peak_allocated_bytes == once.phases[0].peak_allocated_bytes + gradients
    assert often == twice


def test_layers_add_the_same_each() -> None:
    def saved(num_layers: int) -> int:
        return answered(LLAMA | {"num_hidden_layers": num_layers}).memory.saved_activation_bytes

    per_layer = answered("llama").memory.saved_activation_bytes_per_layer
    assert saved(9) - saved(8) == saved(3) - saved(2) == per_layer


def test_layers_of_two_kinds_are_listed() -> None:
    config = LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    per_layer = answered(config, attention="eager").memory.saved_activation_bytes_per_layer
    assert isinstance(per_layer, list)
    assert len(per_layer) == 2


# --- verdict -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_the_verdict(gpu: Any) -> None:
    memory = answered("gpt2", gpu=gpu.name).memory
    assert memory.library_workspace_bytes is not None
    assert memory.headroom_bytes is not None
    assert memory.gpu_memory_bytes == gpu.capacity_bytes
    needed = memory.peak_allocated_bytes + memory.library_workspace_bytes + ASSUMED_CONTEXT_BYTES
    assert memory.headroom_bytes == gpu.capacity_bytes - needed
    assert memory.fits is (memory.headroom_bytes >= 0)


def test_without_a_gpu_there_is_no_verdict() -> None:
    memory = answered().memory
    verdict = ("gpu_memory_bytes", "usable_bytes", "fits", "headroom_bytes", "library_workspace_bytes")
    assert [getattr(memory, name) for name in (*verdict, "assumed_context_bytes")] == [None] * 6


def test_the_verdict_turns_where_the_memory_ends() -> None:
    def fits(micro_batch_size: int) -> bool:
        return bool(answered("llama", gpu="t4", micro_batch_size=micro_batch_size, sequence_length=1024).memory.fits)

    batches = [fits(2**power) for power in range(16)]
    assert batches == sorted(batches, reverse=True)
    assert {True, False} == set(batches)


# Two handles; 32 MiB each on Hopper, and on Blackwell as its successor; 8,519,680 bytes before.
@pytest.mark.parametrize(("gpu", "workspace"), [("a100-sxm-80gb", 2 * 8_519_680), ("h100-sxm-80gb", 2 * 32 * 2**20)])
def test_cublas_workspaces(gpu: str, workspace: int) -> None:
    assert answered("gpt2", gpu=gpu).memory.library_workspace_bytes == workspace


def test_a_longer_sequence_than_the_models_is_noted() -> None:
    assert any("sequence_length = 4,096 is beyond" in each for each in answered("llama", sequence_length=4096).notes)
    assert not any("is beyond" in each for each in answered("llama", sequence_length=2048).notes)


# --- counted by hand -----------------------------------------------------------------------------------------------


def test_gpt2s_parameters() -> None:
    parameters = answered("gpt2").parameters
    H, V, P, L = 64, 96, 128, 3
    assert parameters.by_component == {
        "embedding": (V + P) * H,
        "attention": L * (4 * H * H + 4 * H),  # 3HH + HH weights, 3H + H biases
        "mlp": L * (8 * H * H + 5 * H),
        "norm": (2 * L + 1) * 2 * H,
    }
    assert parameters.total == parameters.trainable == parameters.active_per_token
    assert answered(GPT2 | {"tie_word_embeddings": False}).parameters.by_component["head"] == V * H


def test_llamas_parameters() -> None:
    parameters = answered("llama").parameters
    assert parameters.by_component == {
        "embedding": 96 * 64,
        "attention": 3 * (2 * 64 * 64 + 2 * 64 * 32),
        "mlp": 3 * 3 * 64 * 100,
        "norm": 7 * 64,
        "head": 96 * 64,
    }


@pytest.mark.parametrize(("attention", "core_in_backward"), [("eager", 4), ("flash", 5)])
def test_flops_of_a_dense_model(attention: str, core_in_backward: int) -> None:
    flops = answered("llama", attention=attention, precision="bf16").flops
    weights = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 100) + 96 * 64
    linears = 2 * B * S * weights
    core = 2 * B * 4 * S * S * 16  # one product of heads: q·kᵀ, or weights·v
    assert flops.forward == linears + 3 * 2 * core
    # A gradient of each factor: twice the forward; flash computes its scores again.
    assert flops.backward == 2 * linears + 3 * core_in_backward * core
    assert flops.model_flops_per_token == 3 * (linears + 3 * 2 * core) // (B * S)
    causal_core = core * (S + 1) // (2 * S)
    assert flops.model_flops_per_token_causal == 3 * (linears + 3 * 2 * causal_core) // (B * S)


def test_flops_of_attention_by_part() -> None:
    parts = answered("llama", attention="eager").flops.attention
    N, D, H = 4, 16, 64
    assert parts.qkv_projection == 2 * B * S * H * (64 + 32 + 32)
    assert parts.scores == parts.values == 2 * B * N * S * S * D
    assert (parts.scaling, parts.softmax) == (B * N * S * S, 3 * B * N * S * S)
    assert parts.output_projection == 2 * B * S * H * H


@pytest.mark.parametrize(
    ("optimizer", "precision", "states"),
    [
        ("adamw", "bf16-autocast", 8),
        ("adamw", "fp32", 8),
        ("adamw", "bf16", 4),
        ("adamw-for-loop", "fp16", 4),
        ("sgd", "fp32", 0),
        ("sgd-momentum", "fp32", 4),
        ("sgd-momentum", "bf16", 2),
        ("adamw", "zero-16", 12),
        ("adamw", "megatron-18", 12),
        ("adamw", "textbook-20", 16),
    ],
)
def test_bytes_of_optimizer_states(optimizer: str, precision: str, states: int) -> None:
    # 64-multiples of two bytes and more fill whole allocation units but for norms, whose rounding is left aside here.
    config = LLAMA | {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 512}
    given = answered(config, optimizer=optimizer, precision=precision, attention="eager")
    assert given.memory.persistent_bytes["optimizer_states"] == states * given.parameters.total


def test_the_fused_optimizer_counts_its_steps_on_the_gpu() -> None:
    plain, fused = (answered("gpt2", optimizer=each).memory.persistent_bytes for each in ("adamw", "adamw-fused"))
    num_tensors = 2 + 3 * 12 + 2  # embeddings; per layer two norms and four linears, each weight and bias; last norm
    assert fused["optimizer_states"] - plain["optimizer_states"] == 512 * num_tensors


def optimizer_phase(optimizer: str, **choices: Any) -> int:
    """What step() takes at its highest beyond what is there when it begins."""
    memory = answered(
        LLAMA | {"hidden_size": 512, "vocab_size": 512, "num_key_value_heads": 4}, optimizer=optimizer, **choices
    ).memory
    return memory.phases[2].peak_allocated_bytes - memory.phases[1].end_allocated_bytes


def test_what_step_takes_for_a_moment() -> None:
    config = LLAMA | {"hidden_size": 512, "vocab_size": 512, "num_key_value_heads": 4}
    all_roots = 4 * answered(config).parameters.total
    assert optimizer_phase("adamw") == all_roots  # foreach: the roots of all second moments together
    assert optimizer_phase("adamw-fused") == optimizer_phase("sgd") == optimizer_phase("sgd-momentum") == 0
    # A recipe's update works on the fp32 master weights.
    assert optimizer_phase("adamw", precision="zero-16") == all_roots
    # For-loop: a root beside two denominators, its own and the one before; the largest weights are alike.
    assert optimizer_phase("adamw-for-loop") == 3 * 4 * 512 * 512


def test_the_first_step_has_no_states_yet() -> None:
    memory = answered("gpt2").memory
    states = memory.persistent_bytes["optimizer_states"]
    before_update = max(phase.peak_allocated_bytes for phase in memory.phases[:2]) - states
    assert memory.first_step_peak_allocated_bytes == max(before_update, memory.phases[2].peak_allocated_bytes)


def test_recipes_have_their_states_from_the_start() -> None:
    memory = answered("gpt2", precision="zero-16").memory
    assert memory.first_step_peak_allocated_bytes == memory.peak_allocated_bytes


@pytest.mark.parametrize(("precision", "bytes_per_parameter"), [("zero-16", 2), ("megatron-18", 4), ("textbook-20", 2)])
def test_gradients_of_recipes_live_all_step_long(precision: str, bytes_per_parameter: int) -> None:
    config = LLAMA | {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 512}
    given = answered(config, precision=precision)
    assert given.memory.persistent_bytes["gradients"] == bytes_per_parameter * given.parameters.total


def test_logits_and_loss() -> None:
    """With a vocabulary that dwarfs the rest, the peaks are the loss's."""
    vocab_size = 2**20
    memory = answered(LLAMA | {"vocab_size": vocab_size, "tie_word_embeddings": True}, precision="bf16").memory
    persistent = sum(memory.persistent_bytes.values())
    one = B * S * vocab_size  # one byte per logit
    # Forward: bf16 logits, their fp32 copy, log-probabilities.
    assert memory.phases[0].peak_allocated_bytes - persistent == pytest.approx((2 + 4 + 4) * one, rel=0.01)
    # At its end: bf16 logits (the outputs hold them) and log-probabilities.
    assert memory.phases[0].end_allocated_bytes - persistent == pytest.approx((2 + 4) * one, rel=0.01)
    # Backward: log-probabilities, their gradient, the fp32 logits' gradient; the outputs are gone.
    assert memory.phases[1].peak_allocated_bytes - persistent == pytest.approx((4 + 4 + 4) * one, rel=0.01)


def test_eager_attention_keeps_five_bytes_per_score() -> None:
    def saved(length: int) -> int:
        per_layer = answered(
            GPT2 | {"n_positions": 2048}, precision="bf16", attention="eager", sequence_length=length
        ).memory.saved_activation_bytes_per_layer
        assert isinstance(per_layer, int)
        return per_layer

    # All else is linear in S. Softmax's result and its dropped copy in bf16, the dropout's mask: 2 + 2 + 1.
    assert saved(2048) - 2 * saved(1024) == 2 * 5 * B * 4 * 1024**2


def test_flash_attention_keeps_no_score_matrix() -> None:
    config = GPT2 | {"n_positions": 2**15}
    short, long = (
        answered(config, precision="bf16", sequence_length=length).memory.saved_activation_bytes
        for length in (2**14, 2**15)
    )
    assert long / short == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("name", "masks"),
    [("embd_pdrop", B * S * 64), ("resid_pdrop", 3 * 2 * B * S * 64), ("attn_pdrop", 0)],
    ids=["once", "after attention and MLP", "inside the flash kernel"],
)
def test_dropouts_keep_a_byte_per_element(name: str, masks: int) -> None:
    none = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.0)
    without, with_one = (answered(GPT2 | none | {name: each}).memory.saved_activation_bytes for each in (0.0, 0.1))
    assert with_one == without + masks


def test_elementwise_operations_of_the_papers_block() -> None:
    flops = answered("gpt2", implementation="megatron", precision="bf16").flops
    H, N, V = 64, 4, 96
    layer_norms, gelu, dropouts_with_additions = 2 * B * S * H, B * S * 4 * H, 2 * 2 * B * S * H
    scale_softmax_dropout = (1 + 3 + 1) * B * N * S * S
    embedding, last_norm, log_softmax = 2 * B * S * H, B * S * H, 3 * B * S * V
    layer = layer_norms + gelu + dropouts_with_additions + scale_softmax_dropout
    assert flops.elementwise == 3 * layer + embedding + last_norm + log_softmax
