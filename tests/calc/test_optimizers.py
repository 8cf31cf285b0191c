"""Optimizer states and the temporaries of `step()`, each derived by hand for a model of a few sizes."""

from typing import Any

import pytest

from calc import Adapter, ConfigError, Scenario, estimate
from calc.dimensions import Shorter, StateBlocks, StateBytes
from calc.dtype import DType
from calc.estimation import Estimate
from calc.frames import Frame
from calc.ledger import Kind, Tensor
from calc.scenario import Optimizer
from calc.sizes import Sizes

H, V, P, F = 64, 1024, 128, 256
CONFIG = {"model_type": "gpt2", "n_embd": H, "n_head": 4, "n_layer": 2, "vocab_size": V, "n_positions": P}
LAYER_MATRICES = [(3 * H, H), (H, H), (F, H), (H, F)]
LAYER_VECTORS = [H, H, 3 * H, H, H, H, F, H]
"""Two norms' weights and biases; biases of c_attn, c_proj, c_fc, c_proj."""
ALLOCATION_BYTES = 512


def asked(**fields: Any) -> Estimate:
    choices = {"precision": "fp32", "attention": "eager", "micro_batch_size": 1, "sequence_length": 4} | fields
    return estimate(Scenario(model=CONFIG, **choices))


def rounded(num_bytes: int) -> int:
    return -(-num_bytes // ALLOCATION_BYTES) * ALLOCATION_BYTES


def fp32(*shape: int) -> int:
    numel = 1
    for size in shape:
        numel *= size
    return rounded(4 * numel)


MATRICES = [(V, H), (P, H), *2 * LAYER_MATRICES]
VECTORS = [*2 * LAYER_VECTORS, H, H]
PARAMETERS = sum(fp32(*shape) for shape in MATRICES) + sum(map(fp32, VECTORS))


def states_of(optimizer: str, **fields: Any) -> int:
    return asked(optimizer=optimizer, **fields).memory.persistent_bytes[Kind.OPTIMIZER_STATES]


def temporaries_of(optimizer: str, **fields: Any) -> int:
    """How far the optimizer phase rises above the gradients and all that persists."""
    memory = asked(optimizer=optimizer, **fields).memory
    return memory.phases[-1].peak_allocated_bytes - memory.phases[-2].end_allocated_bytes


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        ("adamw", 2 * PARAMETERS),
        ("sgd", 0),
        ("sgd-momentum", PARAMETERS),
        ("sgd-nesterov", PARAMETERS),
        ("lion", PARAMETERS),
        ("adafactor", sum(fp32(rows) + fp32(columns) for rows, columns in MATRICES) + sum(map(fp32, VECTORS))),
        ("muon", PARAMETERS + fp32(V, H) + fp32(P, H) + sum(map(fp32, VECTORS))),
    ],
)
def test_states(optimizer: str, states: int) -> None:
    assert states_of(optimizer) == states


def test_8_bit_states() -> None:
    """A byte per element and an fp32 scale per 256; below 4096 elements fp32; 256 codes twice."""
    large = sum(2 * rounded(rows * columns) + 2 * fp32(rows * columns // 256) for rows, columns in MATRICES)
    assert states_of("adamw-8bit") == large + 2 * sum(map(fp32, VECTORS)) + 2 * fp32(256)


def test_paged_states_are_not_in_the_allocator() -> None:
    """From 100,000 elements on; here no tensor has as many, and then one."""
    assert states_of("paged-adamw-8bit") == states_of("adamw-8bit")
    config = CONFIG | {"vocab_size": 100_000 // H + 1}
    choices = {"precision": "fp32", "attention": "eager", "sequence_length": 4}
    plain, paged = (
        estimate(Scenario(model=config, optimizer=optimizer, **choices)).memory
        for optimizer in (Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT)
    )
    embedding_bytes = (100_000 // H + 1) * H
    assert paged.paged_optimizer_state_bytes == 2 * embedding_bytes
    assert plain.paged_optimizer_state_bytes == 0
    assert plain.peak_allocated_bytes - paged.peak_allocated_bytes == 2 * rounded(embedding_bytes)


@pytest.mark.parametrize(
    ("optimizer", "temporaries"),
    [
        ("adamw", PARAMETERS),
        ("adamw-fused", 0),
        ("adamw-8bit", 0),
        ("sgd-nesterov", 0),
        # The clone of the momentum and the update, of the largest.
        ("lion", 2 * fp32(V, H)),
        # The estimate of the second matrix beside that of the first, its row and column means, the norm's scalar.
        ("adafactor", fp32(V, H) + fp32(P, H) + fp32(P) + fp32(H) + ALLOCATION_BYTES),
    ],
)
def test_temporaries(optimizer: str, temporaries: int) -> None:
    assert temporaries_of(optimizer) == temporaries


def test_muon_iterates_in_bf16_beside_its_momentum() -> None:
    """With LoRA of rank 2 on c_attn alone: A [2, 64] and B [192, 2] of two layers, no AdamW.

    At B: its momentum in fp32, bf16 iterates [192, 2] old and new, three Gram matrices [2, 2], each in one unit.
    """
    adapter = Adapter(rank=2, target_modules=("c_attn",))
    momentum, iterate, gram = fp32(3 * H, 2), rounded(2 * 3 * H * 2), ALLOCATION_BYTES
    assert temporaries_of("muon", adapter=adapter) == momentum + 2 * iterate + 2 * gram


def test_clipping_holds_a_norm_for_each_gradient() -> None:
    """Then their stack and its norm; SGD itself makes nothing."""
    num_gradients = len(MATRICES) + len(VECTORS)
    stack = fp32(num_gradients)
    assert temporaries_of("sgd", max_grad_norm=1.0) == num_gradients * ALLOCATION_BYTES + stack + ALLOCATION_BYTES


def test_gradients_that_are_not_set_to_none_are_there_in_forward() -> None:
    plain, kept = asked(optimizer="sgd").memory, asked(optimizer="sgd", zero_grad_set_to_none=False).memory
    assert kept.persistent_bytes[Kind.GRADIENTS] == PARAMETERS
    assert kept.phases[0].peak_allocated_bytes - plain.phases[0].peak_allocated_bytes == PARAMETERS
    # The first backward makes them; it needs no others to add to them.
    assert kept.first_step_peak_allocated_bytes == plain.first_step_peak_allocated_bytes


def test_the_average_is_a_copy_of_all_weights() -> None:
    """Frozen ones too."""
    assert asked(weight_ema=True).memory.persistent_bytes[Kind.WEIGHT_EMA] == PARAMETERS
    adapted = asked(weight_ema=True, adapter=Adapter()).memory.persistent_bytes
    assert adapted[Kind.WEIGHT_EMA] == adapted[Kind.PARAMETERS] > PARAMETERS


def test_the_first_step_has_not_all_states_beside_temporaries() -> None:
    """Lion makes the state of the embedding, then its temporaries, then the other states."""
    memory = asked(optimizer="lion").memory
    assert memory.first_step_peak_allocated_bytes < memory.phases[-1].peak_allocated_bytes


@pytest.mark.parametrize("optimizer", sorted(set(Optimizer) - {"adamw", "adamw-fused", "adamw-for-loop"}))
def test_recipes_are_adams(optimizer: Optimizer) -> None:
    with pytest.raises(ConfigError, match=r"^optimizer = .*adamw-for-loop"):
        asked(precision="zero-16", optimizer=optimizer)


@pytest.mark.parametrize(
    ("field", "value"), [("max_grad_norm", 1.0), ("zero_grad_set_to_none", False), ("weight_ema", True)]
)
def test_recipes_count_no_more_than_they_say(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        asked(precision="textbook-20", **{field: value})
    assert (refusal.value.field, refusal.value.value) == (field, value)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("inf"), "1"])
def test_norms_that_are_none(norm: Any) -> None:
    with pytest.raises(ConfigError, match=r"^max_grad_norm = "):
        Scenario(model="gpt2", max_grad_norm=norm)


@pytest.mark.parametrize(
    ("dimension", "size", "formula"),
    [
        (Shorter(("N", "D"), ("H",)), 12, "min(N·D, H)"),
        (StateBlocks(("H", 1024)), 48, "⌈H·1024 / 256⌉"),
        (StateBlocks(("H", 300)), 0, "⌈H·300 / 256⌉"),
        (StateBlocks(("H", 343)), 17, "⌈H·343 / 256⌉"),
        (StateBytes(("H", 300), paged=False), 4 * 12 * 300, "8-bit(H·300)"),
        (StateBytes(("H", 343), paged=False), 12 * 343, "8-bit(H·343)"),
        (StateBytes(("H", 9000), paged=True), 0, "8-bit(H·9000)"),
        (StateBytes(("H", 9000), paged=False), 12 * 9000, "8-bit(H·9000)"),
    ],
)
def test_sizes_that_follow_from_others(dimension: Any, size: int, formula: str) -> None:
    assert Sizes({"H": 12, "N": 3, "D": 5})[dimension] == size
    assert str(dimension) == formula


def test_a_frame_frees_what_no_name_holds() -> None:
    first, second = (Tensor(name, (), DType.FP32) for name in ("first", "second"))
    frame = Frame()
    frame.make("x", first)
    frame.bind("y", "x")
    frame.turn = 1
    frame.make("x", second)
    assert told(frame) == [(0, "first", True), (1, "second", True)]
    frame.drop("y")
    frame.drop_all()
    assert told(frame) == [(0, "first", False), (1, "second", False)]


def told(frame: Frame) -> list[tuple[int, str, bool]]:
    return [
        (turn, tensor.name, step > 0)
        for turn, program in frame.programs()
        for tensor, step in zip(program.tensors, program.steps, strict=True)
    ]


# --- gradients added up in fp32 -------------------------------------------------------------------------------------

SMALL = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "vocab_size": 512}


def in_fp32(**choices: Any) -> tuple[Estimate, Estimate]:
    """Without and with sums in fp32. All weights are multiples of 512 bytes but the norms', of 128."""
    fields: dict[str, Any] = {"model": SMALL, "sequence_length": 16, "precision": "bf16", "optimizer": "sgd"}
    plain, summed = (estimate(Scenario(**fields | choices, accumulate_grads_in_fp32=on)) for on in (False, True))
    return plain, summed


@pytest.mark.parametrize("steps", [1, 3])
def test_sums_in_fp32_take_two_bytes_more_through_backward(steps: int) -> None:
    plain, summed = in_fp32(gradient_accumulation_steps=steps)
    parameters, norms = plain.parameters.total, (2 * 4 + 1) * 64
    of_matrices = (4 - 2) * (parameters - norms)
    ends = [[phase.end_allocated_bytes for phase in each.memory.phases] for each in (plain, summed)]
    # A norm's gradient of 64 elements takes 512 bytes in both types.
    assert [after - before for before, after in zip(*ends, strict=True)] == [
        of_matrices if steps > 1 else 0,
        of_matrices,
        0,
    ]
    assert plain.flops == summed.flops


def test_the_optimizer_gets_one_sum_after_another() -> None:
    plain, summed = in_fp32()
    largest = 2 * max(512 * 64, 64 * 11008)
    optimizer = [each.memory.phases[-1].peak_allocated_bytes for each in (plain, summed)]
    backward_end = summed.memory.phases[1].end_allocated_bytes
    assert optimizer[0] < backward_end < optimizer[1] <= backward_end + largest


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"precision": "bf16-autocast"}, "says it itself"),
        ({"precision": "megatron-18", "optimizer": "adamw"}, "says it itself"),
        ({"zero_grad_set_to_none": False}, "do not persist"),
        ({"adapter": Adapter()}, "not supported yet"),
    ],
)
def test_what_sums_in_fp32_do_not_go_with(choices: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^accumulate_grads_in_fp32 = True: .*{expected}"):
        in_fp32(**choices)
