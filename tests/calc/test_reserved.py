"""The plan's own events through the allocator: in which order, with nothing lost, and what is skipped."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from calc import ConfigError, Scenario, estimate
from calc.allocator import Allocator, Block
from calc.memory import StepMemory
from calc.reserved import Reserved, _Process, reserved
from calc.scenario import Attention, Loss, Optimizer, Precision, Recompute

MIB = 2**20
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 96, "n_positions": 4096}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 100,
    "vocab_size": 96,
}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": True}
GEMMA = LLAMA | {"model_type": "gemma", "head_dim": 16}
WIDE = LLAMA | {"hidden_size": 1032, "num_attention_heads": 12, "head_dim": 88, "intermediate_size": 3000}


def step_of(model: dict[str, Any], **choices: Any) -> StepMemory:
    return estimate(Scenario(model=model, **choices)).step


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    """Steps of models with blocks in both pools."""
    question = {
        "model": draw(st.sampled_from([GPT2, LLAMA, QWEN3, GEMMA, WIDE])),
        "micro_batch_size": draw(st.sampled_from([1, 2, 7])),
        "sequence_length": draw(st.sampled_from([16, 100, 1024, 2500])),
        "precision": draw(st.sampled_from(Precision)),
        "optimizer": draw(st.sampled_from(Optimizer)),
        "attention": draw(st.sampled_from([Attention.FLASH, Attention.EAGER])),
        "recompute": draw(st.sampled_from(Recompute)),
        "gradient_accumulation_steps": draw(st.integers(1, 6)),
        "adapter": {"kind": "lora"} if draw(st.booleans()) else None,
        "max_grad_norm": draw(st.sampled_from([None, 1.0])),
        "zero_grad_set_to_none": draw(st.booleans()),
        "weight_ema": draw(st.booleans()),
    }
    try:
        step_of(**question)
    except ConfigError:
        assume(False)
    return question


class Counting(Allocator):
    """Adds up storages as the ledger does: rounded up, no segments, no tails."""

    def malloc(self, requested_bytes: int) -> Block:
        block = Block(self.small, 0, -(-requested_bytes // 512) * 512)
        block.requested_bytes = requested_bytes
        self.allocated_bytes += block.size_bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block

    def free(self, block: Block) -> None:
        self.allocated_bytes -= block.size_bytes


@given(questions())
@settings(max_examples=60)
def test_the_events_are_the_ledgers(question: dict[str, Any]) -> None:
    step = step_of(**question)
    counting = Counting()
    result = reserved(step, allocator=counting)
    assert result.peak_allocated_bytes == step.timeline.peak.peak_bytes
    assert result.first_step_peak_allocated_bytes == step.first_step_peak_bytes
    assert counting.allocated_bytes == sum(step.persistent_bytes.values())


@given(questions())
@settings(max_examples=30)
def test_what_is_reserved_holds_the_ledgers_peak(question: dict[str, Any]) -> None:
    step = step_of(**question)
    result = reserved(step)
    assert result.peak_reserved_bytes >= result.peak_allocated_bytes >= step.timeline.peak.peak_bytes
    assert result.peak_allocated_bytes >= result.peak_requested_bytes
    assert result.peak_reserved_bytes % (2 * MIB) == 0


@given(questions())
@settings(max_examples=20)
def test_micro_batches_that_repeat_are_skipped_exactly(question: dict[str, Any]) -> None:
    step = step_of(**question)
    assume(step.workload.gradient_accumulation_steps > 2)
    assert reserved(step) == reserved_in_full(step)


def reserved_in_full(step: StepMemory) -> Reserved:
    """All micro-batches: no layout is ever found to be the one before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Process, "_layout", lambda _: object())
        return reserved(step)


def test_the_second_step_has_peaks_of_its_own() -> None:
    allocator = Allocator()
    allocator.peak_allocated_bytes = 10**15
    result = reserved(step_of(LLAMA, sequence_length=32), allocator=allocator)
    assert result.first_step_peak_allocated_bytes == 10**15
    assert result.peak_allocated_bytes < 10**9


class Watching(Allocator):
    """Lists what is asked for, and given back as the number of its asking."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.number: dict[int, int] = {}
        self.freed: list[int] = []

    def malloc(self, requested_bytes: int) -> Block:
        block = super().malloc(requested_bytes)
        self.number[block.address] = len(self.asked)
        self.asked.append(requested_bytes)
        return block

    def free(self, block: Block) -> None:
        self.freed.append(self.number[block.address])
        super().free(block)


def asked(step: StepMemory, **workspaces: int) -> list[int]:
    watching = Watching()
    reserved(step, allocator=watching, **workspaces)
    return watching.asked


def test_all_micro_batches_run() -> None:
    step = step_of(LLAMA, micro_batch_size=3, sequence_length=32, gradient_accumulation_steps=5)
    padded_labels = 8 * 3 * 33  # once in each micro-batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Process, "_layout", lambda _: object())
        assert asked(step).count(padded_labels) == 2 * 5
    assert asked(step).count(padded_labels) < 2 * 5


def test_backward_frees_the_last_layers_tensors_first() -> None:
    watching = Watching()
    reserved(step_of(LLAMA, micro_batch_size=3, sequence_length=32, attention="flash"), allocator=watching)
    logsumexp = 4 * 3 * 4 * 32  # fp32 [3, 4 heads, 32]: one in each of 3 layers
    made = [number for number, size in enumerate(watching.asked) if size == logsumexp]
    freed = [number for number in watching.freed if number in made]
    assert len(made) == 2 * 3
    assert freed == [*reversed(made[:3]), *reversed(made[3:])]


def test_the_model_comes_first_in_the_order_of_its_parameters() -> None:
    step = step_of(LLAMA, micro_batch_size=3, sequence_length=32, precision="fp32", attention="eager")
    # fp32: embedding 96·64; per layer q, k, v, o, gate, up, down, two norms; norm and head; then RoPE's two buffers of
    # head_dim / 2 = 8 numbers, and 3·32 int64 tokens.
    q, kv, mlp, norm, vocabulary = 4 * 64 * 64, 4 * 64 * 32, 4 * 64 * 100, 4 * 64, 4 * 96 * 64
    layer = [q, kv, kv, q, mlp, mlp, mlp, norm, norm]
    model = [vocabulary, *layer * 3, norm, vocabulary]
    assert asked(step)[: len(model) + 3] == [*model, 4 * 8, 4 * 8, 8 * 3 * 32]


def test_states_are_made_by_the_first_step_parameter_by_parameter() -> None:
    step = step_of(LLAMA, micro_batch_size=3, sequence_length=32, precision="fp32", attention="eager")
    sizes = asked(step)
    both_moments = [size for size in sizes[: 1 + 3 * 9 + 2] for _ in range(2)]
    places = range(len(sizes) - len(both_moments))
    assert sum(sizes[place : place + len(both_moments)] == both_moments for place in places) == 1


@given(questions())
@settings(max_examples=20)
def test_every_step_makes_both_workspaces(question: dict[str, Any]) -> None:
    sizes = asked(step_of(**question), forward_workspace_bytes=12345, backward_workspace_bytes=54321)
    assert (sizes.count(12345), sizes.count(54321)) == (1, 1)
    assert sizes.index(12345) < sizes.index(54321)


@pytest.mark.parametrize(
    ("name", "workspace"), [("forward_workspace_bytes", 12345), ("backward_workspace_bytes", 54321)]
)
def test_a_workspace_is_made_once_when_the_first_product_has_its_result(name: str, workspace: int) -> None:
    step = step_of(LLAMA, micro_batch_size=3, sequence_length=32, attention="flash")
    sizes = asked(step, **{name: workspace})
    # Forward: the bf16 casts of q's weight [64, 64] and of its input [3, 32, 64], its output; then k's weight's cast.
    # Backward: the fp32 and bf16 gradients of the logits [3, 32, 96], that of the head's input; then its weight's.
    before, after = {
        12345: ([2 * 64 * 64, 2 * 96 * 64, 2 * 96 * 64], 2 * 64 * 32),
        54321: ([4 * 96 * 96, 2 * 96 * 96, 2 * 96 * 64], 2 * 96 * 64),
    }[workspace]
    place = sizes.index(workspace)
    assert sizes[place - 3 : place] == before
    assert sizes[place + 1] == after
    assert sizes.count(workspace) == 1


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_gradients_written_in_place_are_found_by_the_part_before(recompute: str, loss: Loss) -> None:
    """Liger's RMSNorm writes its input's gradient into its output's, which some losses make in forward."""
    fields: dict[str, Any] = {"model": LIGER, "sequence_length": 64, "use_liger_kernel": True, "recompute": recompute}
    memory = estimate(Scenario(**fields, loss=loss, gpu="rtx-4090")).memory
    simulated = memory.reserved
    assert simulated is not None
    assert simulated.peak_allocated_bytes >= memory.peak_allocated_bytes
    assert simulated.peak_reserved_bytes >= simulated.peak_allocated_bytes


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt"])
def test_a_loss_whose_products_run_in_forward(model_type: str, loss: Loss) -> None:
    """Backward's first product is then one of the last layer's."""
    model = {"model_type": model_type, "vocab_size": 97}
    memory = estimate(Scenario(model=model, sequence_length=16, loss=loss, gpu="rtx-4090")).memory
    assert memory.reserved is not None
    assert memory.reserved.peak_reserved_bytes >= memory.peak_allocated_bytes


LIGER = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 97}
