"""An evaluation between training steps: what it leaves out, what it holds, what it keeps of the logits."""

from typing import Any

import pytest

from calc import ConfigError, Estimate, Scenario, estimate

LOGITS_BYTES = 2 * 1024 * 50257 * 2
"""Of a batch of two sequences of GPT-2, in bf16."""
PADDED_LOGITS_BYTES = -(-LOGITS_BYTES // 512) * 512


def gpt2(**fields: Any) -> Estimate:
    return estimate(Scenario(model="gpt2", **{"task": "evaluation", "micro_batch_size": 2} | fields))


def test_it_has_one_phase_and_keeps_nothing_for_backward() -> None:
    memory = gpt2().memory
    assert [phase.name for phase in memory.phases] == ["forward"]
    assert memory.peak_phase == "forward"
    assert memory.autograd_saved_bytes == 0
    assert memory.saved_activation_bytes == PADDED_LOGITS_BYTES + 512  # the outputs: logits and loss
    assert sum(memory.at_peak.values()) == memory.peak_allocated_bytes


def test_it_happens_between_steps_of_the_training_around_it() -> None:
    evaluation, training = gpt2().memory, gpt2(task="training").memory
    assert evaluation.persistent_bytes == training.persistent_bytes
    assert evaluation.peak_allocated_bytes < training.peak_allocated_bytes
    states = evaluation.persistent_bytes["optimizer_states"]
    assert evaluation.first_step_peak_allocated_bytes == evaluation.peak_allocated_bytes - states
    kept = gpt2(zero_grad_set_to_none=False).memory
    assert kept.peak_allocated_bytes - evaluation.peak_allocated_bytes == kept.persistent_bytes["gradients"] > 0


def test_only_forward_is_computed() -> None:
    evaluation, training = gpt2().flops, gpt2(task="training").flops
    assert evaluation.total == evaluation.forward == training.forward
    assert evaluation.backward == evaluation.recompute == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"recompute": "full"},
        {"recompute": "full", "recompute_group_size": 3},
        {"recompute": "selective", "recompute_interval": 2},
        {"gradient_accumulation_steps": 4},
        {"hold_outputs": True},
        {"max_grad_norm": 1.0},
        {"dropout": 0.3},
    ],
)
def test_what_the_training_does_in_its_steps_changes_nothing(fields: dict[str, Any]) -> None:
    changed, plain = gpt2(**fields), gpt2()
    assert changed.memory.to_dict() == plain.memory.to_dict()
    assert changed.flops == plain.flops
    assert changed.scenario.task == "evaluation"


def test_autocast_holds_its_casts_of_all_trained_weights() -> None:
    matrices = 12 * 768 * 768 * 12 + 50257 * 768  # of the layers, and the head, which is the embedding
    assert gpt2().memory.at_peak["autocast_weights"] > 2 * matrices
    assert gpt2(precision="bf16").memory.at_peak["autocast_weights"] == 0


def test_kept_logits_are_there_twice_while_a_batch_is_added() -> None:
    peaks = {kept: gpt2(eval_accumulation_steps=kept).memory.peak_allocated_bytes for kept in (40, 41)}
    more = peaks[41] - peaks[40]
    assert abs(more - 2 * LOGITS_BYTES) <= 2 * 512
    memory = gpt2(eval_accumulation_steps=40).memory
    assert memory.peak_at == "logits"
    [phase] = memory.phases
    persistent = sum(memory.persistent_bytes.values())
    kept_and_last = 41 * LOGITS_BYTES  # the loop's variable holds the last batch's beside them
    assert 0 <= phase.end_allocated_bytes - persistent - kept_and_last < 4 * 512


def test_few_kept_batches_add_theirs_to_the_next_forward() -> None:
    peaks = [gpt2(eval_accumulation_steps=kept).memory.peak_allocated_bytes for kept in (0, 1, 2, 3)]
    assert peaks[0] == peaks[1]
    assert peaks[2] - peaks[1] == PADDED_LOGITS_BYTES + 512  # the first batch's, with its loss
    assert peaks[3] - peaks[2] == -(-2 * LOGITS_BYTES // 512) * 512  # two together, where there was one of them


def test_an_adapters_dropout_does_not_run() -> None:
    plain, dropped = (gpt2(adapter={"rank": 8, "dropout": dropout}).memory for dropout in (0.0, 0.1))
    assert plain.to_dict() == dropped.to_dict()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"task": "training", "eval_accumulation_steps": 1}, "eval_accumulation_steps"),
        ({"implementation": "megatron"}, "implementation"),
        ({"precision": "zero-16"}, "precision"),
        ({"loss": "fused-linear-cross-entropy"}, "loss"),
        ({"recompute_offload": True}, "recompute_offload"),  # as in the training around it
    ],
)
def test_what_it_does_not_go_with_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named} = "):
        gpt2(**fields)


def test_reserved_bytes_are_not_simulated() -> None:
    memory = gpt2(gpu="rtx-4090").memory
    assert memory.peak_reserved_bytes is None
    assert memory.device_bytes is None
    assert memory.to_dict(reserved=True)["device_bytes"] is None
    assert memory.fits


def test_the_notes_say_what_is_alive() -> None:
    text = " ".join(gpt2(eval_accumulation_steps=2).notes)
    assert "between two training steps" in text
    assert "eval_accumulation_steps" in text
    assert "torch.no_grad" not in " ".join(gpt2(task="training").notes)


@pytest.mark.parametrize(
    "fields",
    [{}, {"recompute": "full", "dropout": 0.2}, {"zero_grad_set_to_none": False}, {"adapter": {"rank": 4}}],
    ids=str,
)
def test_a_training_says_the_peak_of_its_evaluation(fields: dict[str, Any]) -> None:
    training = gpt2(task="training", **fields)
    assert training.evaluation_peak_allocated_bytes == gpt2(**fields).memory.peak_allocated_bytes
    assert training.to_dict()["memory"]["evaluation_peak_allocated_bytes"] == training.evaluation_peak_allocated_bytes


@pytest.mark.parametrize("fields", [{"precision": "zero-16"}, {"loss": "chunked-cross-entropy"}], ids=str)
def test_a_training_without_such_an_evaluation_says_none(fields: dict[str, Any]) -> None:
    assert gpt2(task="training", **fields).evaluation_peak_allocated_bytes is None
    assert gpt2().evaluation_peak_allocated_bytes is None
