"""The tracer against real steps on CPU tensors, against FlopCounterMode and against published traces."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from operator import itemgetter
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from calc.scenario import Scenario
from validation import cuda_kernels
from validation.cuda_kernels import CudaFunctions, checkpoint_contexts
from validation.models import Job, build_job
from validation.refusals import CannotRun
from validation.step import Phase, forward, training_step
from validation.storages import storage_bytes
from validation.trace import Trace, lines, main, trace

GIB = 2**30
LLAMA = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 1000, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 128}
MODELS = {"llama": LLAMA, "gpt2": GPT2}
LORA = {"rank": 4}


def asked(model: str = "llama", **fields: Any) -> Scenario:
    return Scenario(**{"model": model, "micro_batch_size": 8, "sequence_length": 128, "attention": "eager"} | fields)


def traced(model: str = "llama", **fields: Any) -> Trace:
    return traced_once(model, json.dumps(fields))


@cache
def traced_once(model: str, fields: str) -> Trace:
    return trace(asked(model, **json.loads(fields)), MODELS[model])


def peaks(result: Trace) -> dict[str, int]:
    return {phase["name"]: phase["peak_allocated_bytes"] for phase in result.memory["phases"]}


def ends(result: Trace) -> dict[str, int]:
    return {phase["name"]: phase["end_allocated_bytes"] for phase in result.memory["phases"]}


def real_job(scenario: Scenario, config: dict[str, Any]) -> Job:
    return build_job(scenario, config, "cpu", "eager", checkpoint_contexts)


# --- against real steps -------------------------------------------------------------------------------------------

REAL_STEPS = [
    ("llama", {"precision": "fp32"}),
    ("llama", {"precision": "bf16"}),
    ("llama", {"precision": "bf16-autocast"}),
    ("llama", {"precision": "bf16-autocast", "recompute": "full"}),
    ("llama", {"precision": "fp32", "recompute": "selective"}),
    ("llama", {"precision": "fp32", "adapter": LORA}),
    ("llama", {"precision": "fp32", "gradient_accumulation_steps": 2}),
    ("gpt2", {"precision": "fp32"}),
    ("gpt2", {"precision": "fp32", "optimizer": "adamw-for-loop"}),
    ("gpt2", {"precision": "fp32", "recompute": "full"}),
    ("gpt2", {"precision": "fp32", "recompute": "full", "recompute_interval": 2}),
    ("gpt2", {"precision": "bf16-autocast"}),
]
ALLOCATOR_TOLERANCE = 5e-4
"""The trace rounds each storage up to 512 bytes; a real step on the CPU also allocates 5 kB of generator states."""


@pytest.mark.parametrize(("model", "fields"), REAL_STEPS)
def test_bytes_alive_are_those_of_a_real_step(model: str, fields: dict[str, Any]) -> None:
    scenario = asked(model, dropout=0.0, **fields)
    result = trace(scenario, MODELS[model])
    for phase, (peak, end) in real_bytes(scenario, MODELS[model]).items():
        assert peaks(result)[phase] == pytest.approx(peak, rel=ALLOCATOR_TOLERANCE)
        assert ends(result)[phase] == pytest.approx(end, rel=ALLOCATOR_TOLERANCE)


MARK = "phase: "


def real_bytes(scenario: Scenario, config: dict[str, Any]) -> dict[Phase, tuple[int, int]]:
    """Peak and end of each phase of a second step on real CPU tensors, from the profiler's allocation events."""
    job = real_job(scenario, config)

    @contextmanager
    def marked(phase: Phase) -> Iterator[None]:
        with record_function(MARK + phase):
            yield

    with CudaFunctions():
        training_step(job, lambda phase: nullcontext())
        live = storage_bytes([*job.model.parameters(), *job.model.buffers(), job.inputs, *optimizer_states(job)])
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            training_step(job, marked)
    assert profiled.profiler is not None
    results: Any = profiled.profiler.kineto_results
    events = sorted(((event.start_ns(), event.name(), event) for event in results.events()), key=itemgetter(0))
    found: dict[Phase, tuple[int, int]] = {}
    phase = Phase.FORWARD
    for _, name, event in events:
        if name.startswith(MARK):
            phase = Phase(name.removeprefix(MARK))
        elif name == "[memory]":
            live += event.nbytes()
            found[phase] = max(live, found.get(phase, (0, 0))[0]), live
    return found


def optimizer_states(job: Job) -> list[torch.Tensor]:
    """Without the step counters, which stay on the host."""
    states = (state for optimizer in job.optimizers for state in optimizer.state.values())
    return [value for state in states for value in state.values() if value.dim()]


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("llama", {"precision": "bf16"}),
        ("llama", {"precision": "bf16-autocast", "recompute": "full"}),
        ("llama", {"precision": "bf16", "adapter": LORA}),
        ("gpt2", {"precision": "fp32"}),
        ("gpt2", {"precision": "bf16-autocast", "adapter": LORA}),
    ],
)
def test_gradients_meet_in_place_where_the_real_engine_adds_in_place(model: str, fields: dict[str, Any]) -> None:
    scenario = asked(model, micro_batch_size=1, sequence_length=32, dropout=0.1, **fields)
    decide, decisions = cuda_kernels.can_accumulate_in_place, []

    def decide_and_note(first: torch.Tensor, *others: Any) -> bool:
        decisions.append((decide(first, *others), tuple(first.shape)))
        return decisions[-1][0]

    with patch.object(cuda_kernels, "can_accumulate_in_place", decide_and_note):
        trace(scenario, MODELS[model])
    one_step = decisions[: len(decisions) // 2]
    assert one_step == real_additions(scenario, MODELS[model])
    assert one_step


def real_additions(scenario: Scenario, config: dict[str, Any]) -> list[tuple[bool, tuple[int, ...]]]:
    """The engine's sums of gradients in one backward on real CPU tensors: in place or not, and the shape."""
    job = real_job(scenario, config)
    with CudaFunctions():
        loss = forward(job).loss
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            loss.backward()
    events = profiled.events()
    assert events is not None
    return [
        (event.name == "aten::add_", tuple(event.input_shapes[0]))
        for event in sorted(events, key=lambda event: event.time_range.start)
        if event.name in ("aten::add", "aten::add_")
        and event.cpu_parent is not None
        and "evaluate_function" in event.cpu_parent.name
    ]


@pytest.mark.parametrize("model", MODELS)
def test_a_tied_head_holds_three_embedding_gradients_for_a_moment(model: str) -> None:
    """The head's gradient is a view, so the engine adds embedding's to it out of place."""
    config = MODELS[model] | {"tie_word_embeddings": True, "vocab_size": 50_000}
    result = trace(asked(model, micro_batch_size=1, sequence_length=8, optimizer="sgd", precision="fp32"), config)
    embedding = 4 * 50_000 * 256
    gradients = result.memory["persistent_bytes"]["parameters"]
    everything = gradients + sum(result.memory["persistent_bytes"].values())
    assert peaks(result)["backward"] - everything == pytest.approx(2 * embedding, rel=0.01)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fields", [{"precision": "fp32"}, {"precision": "bf16-autocast"}, {"recompute": "full"}])
def test_autograd_saves_what_a_real_forward_saves(model: str, fields: dict[str, Any]) -> None:
    scenario = asked(model, dropout=0.1, **fields)
    job = real_job(scenario, MODELS[model])
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), CudaFunctions():
        outputs = forward(job)
    owned = {parameter.untyped_storage()._cdata for parameter in job.model.parameters()}
    real = storage_bytes(tensor for tensor in saved if tensor.untyped_storage()._cdata not in owned)
    assert trace(scenario, MODELS[model]).memory["autograd_saved_bytes"] == real
    assert outputs.logits.shape == (8, 128, 1000)


# --- FLOPs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "fields",
    [{}, {"recompute": "full"}, {"recompute": "selective"}, {"adapter": LORA}, {"adapter": LORA, "recompute": "full"}],
)
def test_flops_are_those_of_flop_counter_mode(model: str, fields: dict[str, Any]) -> None:
    scenario = asked(model, micro_batch_size=2, sequence_length=16, **fields)
    job = real_job(scenario, MODELS[model])
    with FlopCounterMode(display=False) as counter, CudaFunctions():
        loss = forward(job).loss
        forward_flops = counter.get_total_flops()
        loss.backward()
    flops = trace(scenario, MODELS[model]).flops
    assert flops["forward"] == forward_flops
    assert flops["total"] == counter.get_total_flops()
    assert flops["total"] == flops["forward"] + flops["backward"] + flops["recompute"]


def test_recomputation_leaves_the_backward_flops_alone() -> None:
    plain, full, selective = (traced(recompute=kind).flops for kind in ("none", "full", "selective"))
    assert plain["backward"] == full["backward"] == selective["backward"]
    assert plain["recompute"] == 0 < selective["recompute"] < full["recompute"] < full["forward"]
    # the scores alone are run again: their softmax is the last tensor that backward needs. 2·B·N·S·S·D per layer
    assert selective["recompute"] == 2 * (2 * 8 * 4 * 128 * 128 * 64)


def test_flash_backward_is_two_and_a_half_times_its_forward() -> None:
    flash, eager = traced(attention="flash").flops, traced().flops
    core = 2 * (2 * 2 * 8 * 4 * 128 * 128 * 64)  # layers · (scores and values, 2·B·N·S·S·D each)
    assert flash["forward"] == eager["forward"]
    assert flash["backward"] - eager["backward"] == core // 2


KERNEL = "aten._scaled_dot_product_{}_attention.default"


@pytest.mark.parametrize(
    ("config", "precision", "operators"),
    [
        (LLAMA, "bf16", {KERNEL.format("flash")}),
        (LLAMA, "fp32", {"aten._safe_softmax.default"}),
        (LLAMA | {"num_key_value_heads": 4}, "fp32", {KERNEL.format("efficient")}),
        (LLAMA | {"model_type": "mistral", "sliding_window": 16}, "bf16-autocast", {KERNEL.format("efficient")}),
        (
            LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
            "bf16",
            {KERNEL.format("flash"), KERNEL.format("efficient")},
        ),
    ],
)
def test_auto_lets_each_layer_decide(config: dict[str, Any], precision: str, operators: set[str]) -> None:
    scenario = asked(attention="auto", precision=precision, micro_batch_size=1, sequence_length=16)
    ran = {event.op for event in trace(scenario, config).events}
    cores = {op for op in ran if "attention" in op and "backward" not in op} | (ran & {"aten._safe_softmax.default"})
    assert cores == operators


def test_efficient_and_math_count_the_flops_of_their_products() -> None:
    config = MODELS["gpt2"]
    eager, math, efficient = (
        trace(asked("gpt2", attention=attention, precision="fp32"), config).flops
        for attention in ("eager", "math", "efficient")
    )
    assert math == eager
    core = 2 * (2 * 2 * 8 * 4 * 128 * 128 * 64)  # layers · (scores and values, 2·B·N·S·S·D each)
    assert efficient["forward"] == eager["forward"]
    assert efficient["backward"] - eager["backward"] == core // 2


def test_accumulation_repeats_forward_and_backward() -> None:
    one, three = traced(), traced(gradient_accumulation_steps=3)
    assert three.flops == {work: 3 * flops for work, flops in one.flops.items()}
    assert three.memory["saved_activation_bytes"] == one.memory["saved_activation_bytes"]
    assert ends(three)["backward"] == ends(one)["backward"]


# --- bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"attention": "flash", "precision": "fp16-autocast", "recompute": "full"}])
def test_two_traces_are_equal(fields: dict[str, Any]) -> None:
    assert trace(asked(**fields), LLAMA).to_dict() == trace(asked(**fields), LLAMA).to_dict()


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("precision", ["fp16", "fp16-autocast"])
def test_nothing_but_the_persistent_bytes_outlives_a_step(model_type: str, precision: str) -> None:
    config = GPT2 if model_type == "gpt2" else LLAMA | {"model_type": model_type}
    result = trace(asked(micro_batch_size=1, sequence_length=16, precision=precision), config)
    assert ends(result)["optimizer"] == sum(result.memory["persistent_bytes"].values())


@pytest.mark.parametrize("precision", ["bf16", "bf16-autocast"])
def test_recomputation_saves_activations(precision: str) -> None:
    plain, full, selective = (
        traced(precision=precision, recompute=kind).memory["saved_activation_bytes"]
        for kind in ("none", "full", "selective")
    )
    assert full < selective < plain


def test_selective_recomputation_keeps_what_flash_attention_is_given() -> None:
    """Under autocast rotary embeddings give fp32 queries and keys; the kernel itself would keep their bf16 casts.

    The checkpoints also keep the other arguments, of which only the positions would have gone.
    """
    plain, selective = (
        traced(attention="flash", recompute=kind).memory["saved_activation_bytes"] for kind in ("none", "selective")
    )
    tokens, queries_and_keys, heads = 8 * 128, 4 * 64 + 2 * 64, 4
    statistics = 4 * tokens * heads + 2 * 512  # logsumexp, and two generator states
    positions = 8 * 128
    assert selective - plain == 2 * (2 * tokens * queries_and_keys - statistics) + positions


STATES_AND_TEMPORARIES = [
    # copies of all parameters kept between steps, and made within the optimizer's step beyond its gradients
    ("adamw", 2, 1),
    ("adamw-fused", 2, 0),
    ("sgd", 0, 0),
    ("sgd-momentum", 1, 0),
]


@pytest.mark.parametrize(("optimizer", "states", "temporaries"), STATES_AND_TEMPORARIES)
def test_what_each_optimizer_keeps(optimizer: str, states: int, temporaries: int) -> None:
    result = traced(optimizer=optimizer, precision="fp32", micro_batch_size=1, sequence_length=8)
    parameters = result.memory["persistent_bytes"]["parameters"]
    tensors = len(list(real_job(asked(), LLAMA).model.parameters()))
    steps = 512 * tensors if optimizer == "adamw-fused" else 0
    assert result.memory["persistent_bytes"]["optimizer_states"] == states * parameters + steps
    assert peaks(result)["optimizer"] - ends(result)["backward"] == temporaries * parameters


def test_a_grad_scaler_keeps_its_scale_and_its_growth_tracker() -> None:
    without, with_scaler = (
        traced(precision=precision, optimizer="sgd").memory["persistent_bytes"]["buffers"]
        for precision in ("bf16-autocast", "fp16-autocast")
    )
    assert with_scaler == without + 2 * 512


@pytest.mark.parametrize(("dtype", "itemsize"), [("fp32", 4), ("base", 2)])
def test_adapter_weights_have_the_type_that_was_asked_for(dtype: str, itemsize: int) -> None:
    base, adapted = (traced(precision="bf16", adapter=adapter) for adapter in (None, LORA | {"dtype": dtype}))
    added = adapted.memory["persistent_bytes"]["parameters"] - base.memory["persistent_bytes"]["parameters"]
    assert added == itemsize * adapted.parameters["trainable"]
    assert adapted.parameters["frozen"] == base.parameters["total"]


def test_dropout_keeps_one_byte_per_element() -> None:
    with_dropout, without = (
        traced("gpt2", dropout=dropout, precision="fp32").memory["saved_activation_bytes"] for dropout in (0.1, 0.0)
    )
    residual, probabilities = 8 * 128 * 256, 8 * 4 * 128 * 128
    masks = residual + 2 * (2 * residual + probabilities)
    dropped_probabilities = 2 * 4 * probabilities  # beside the softmax's result, which backward needs too
    assert with_dropout - without == masks + dropped_probabilities


# --- published traces ---------------------------------------------------------------------------------------------

LLAMA_2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
GPT2_124M = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}


def test_llama_2_7b() -> None:
    scenario = asked(micro_batch_size=1, precision="bf16", attention="flash", sequence_length=4096)
    result = trace(scenario, LLAMA_2_7B)
    weights, states = (result.memory["persistent_bytes"][part] for part in ("parameters", "optimizer_states"))
    assert result.parameters["total"] == 6_738_415_616
    assert result.flops["forward"] == 62_921_270_886_400
    assert round(weights / GIB, 2) == 12.55
    assert round((ends(result)["forward"] - states) / GIB, 2) == 36.18
    assert round((peaks(result)["forward"] - states) / GIB, 2) == 36.67
    assert round(result.memory["first_step_peak_allocated_bytes"] / GIB, 2) == 62.76


@pytest.mark.parametrize(("dropout", "forward_gib", "backward_gib"), [(None, 19.44, 20.19), (0.0, 18.17, 18.91)])
def test_gpt2_124m(dropout: float | None, forward_gib: float, backward_gib: float) -> None:
    scenario = asked(micro_batch_size=8, sequence_length=1024, precision="bf16-autocast", dropout=dropout)
    result = trace(scenario, GPT2_124M)
    assert result.flops["forward"] == 8 * 291_648_307_200
    assert peaks(result)["forward"] / GIB == pytest.approx(forward_gib, abs=0.01)
    assert peaks(result)["backward"] / GIB == pytest.approx(backward_gib, abs=0.01)


# --- what is refused, and the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("attention", {"attention": "cudnn"}),
        ("precision", {"precision": "zero-16"}),
        ("optimizer", {"optimizer": "paged-adamw-8bit"}),
        ("implementation", {"implementation": "megatron"}),
        ("parallel", {"parallel": {"tensor": 2}}),
    ],
)
def test_what_cannot_be_traced_is_refused_by_name(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(CannotRun) as refusal:
        traced(**fields)
    assert refusal.value.field == field


def test_the_listing_ends_at_the_end_of_the_step() -> None:
    result = traced(micro_batch_size=1, sequence_length=8)
    phase, live_bytes, *_ = list(lines(result))[-1].split()
    assert (phase, int(live_bytes.replace(",", ""))) == ("optimizer", ends(result)["optimizer"])


def test_the_command_line_prints_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    model = (
        '{"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}'
    )
    main(["--summary", "--model-json", model, "--micro-batch-size", "1", "--sequence-length", "8"])
    assert '"peak_phase"' in capsys.readouterr().out
