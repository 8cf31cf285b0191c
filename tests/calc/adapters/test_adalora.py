"""AdaLoRA: three factors and a rank for each module, and a regularisation of them in the loss."""

from typing import Any

import pytest

from calc import Adapter, ConfigError, Estimate, Scenario, estimate
from tests.calc.adapters.toys import GPT2, LLAMA

RANK, LAYERS = 3, 3
Q, V = (64, 64), (64, 32)
"""In and out features of the default's modules."""


def answered(kind: str = "adalora", model: dict[str, Any] = LLAMA, **choices: Any) -> Estimate:
    fields = {name: choices.pop(name) for name in Adapter.model_fields if name in choices}
    adapter = Adapter(**{"kind": kind, "rank": RANK, **fields})
    return estimate(Scenario(model=model, adapter=adapter, **{"sequence_length": 33, "precision": "bf16", **choices}))


def factors(*shapes: tuple[int, int]) -> int:
    """A, B and E."""
    return LAYERS * sum(RANK * (inside + outside + 1) for inside, outside in shapes)


@pytest.mark.parametrize(
    ("choices", "trainable", "ranks"),
    [
        ({}, factors(Q, V), 2),
        ({"model": GPT2}, factors((64, 3 * 64)), 1),
        ({"target_modules": ("v_proj",), "rank": 3}, factors(V), 1),
    ],
)
def test_trainable_parameters(choices: dict[str, Any], trainable: int, ranks: int) -> None:
    """The rank of each module is a number that PEFT trains, beside the factors, where the base is in half precision."""
    plain = estimate(Scenario(model=choices.get("model", LLAMA), sequence_length=33)).parameters.total
    half, full = answered(**choices).parameters, answered(precision="fp32", **choices).parameters
    assert (half.trainable, half.frozen) == (trainable + LAYERS * ranks, plain)
    assert (full.trainable, full.frozen) == (trainable, plain + LAYERS * ranks)


def test_the_regularisation_multiplies_each_factor_by_itself() -> None:
    lora, adalora = answered("lora").flops, answered().flops
    squares = LAYERS * sum(2 * RANK * RANK * (inside + outside) for inside, outside in (Q, V))
    assert adalora.forward - lora.forward == squares
    assert adalora.backward - lora.backward == 2 * squares


def test_gradients_of_the_factors_are_there_from_the_start_of_backward() -> None:
    """The regularisation's nodes are the last of forward, so the first of backward."""
    spans = answered().step.timeline.spans
    of_weights = [span for span in spans if span.stretch.label == "regularisation"]
    regularised = of_weights[len(of_weights) // 2 :]  # of backward
    kept = sum(span.end_bytes - span.start_bytes for span in regularised)
    # A (3×64) and B (64×3, 32×3) in fp32: 1024, 1024, 1024, 512 with the allocator's rounding; two squares' differences
    # and norms go.
    assert kept == LAYERS * (1024 + 1024 + 1024 + 512 - 4 * 2 * 512)


def test_autocast_keeps_two_casts_of_each_factor() -> None:
    """Of the factor, which its cache holds too, and of its transpose."""
    half, autocast = (
        {entry.name: entry for entry in answered(precision=precision).tensors}
        for precision in ("bf16", "bf16-autocast")
    )
    names = [name for name in autocast if "lora_A" in name and name.endswith("cast")]
    assert {autocast[name].count for name in names if "q_proj" in name} == {LAYERS}
    assert any("transposed" in name for name in names)
    assert not any(name in half for name in names)


def test_dividing_by_the_rank_makes_fp32_of_the_branch_under_autocast() -> None:
    rows = [row for row in answered(precision="bf16-autocast").step.runs[1].part.section.rows if row.name == "div"]
    assert [(row.reads[0].dtype.label, row.writes[0].dtype.label) for row in rows] == [("bf16", "fp32")] * 2


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"use_dora": True}, r"adapter\.use_dora = True: is not read with adapter\.kind = adalora"),
        ({"num_virtual_tokens": 3}, r"adapter\.num_virtual_tokens = 3: is not read with adapter\.kind = adalora"),
        ({"task": "evaluation"}, "task = 'evaluation': is not supported yet with adapter.kind = adalora"),
        (
            {"model": LLAMA | {"model_type": "mistral"}},
            r"adapter\.target_modules = None: should be given: PEFT has none here; there are down_proj, gate_proj",
        ),
    ],
)
def test_what_it_does_not_go_with(choices: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        answered(**choices)


def test_it_says_what_is_not_counted() -> None:
    assert any("update_and_allocate" in note for note in answered().notes)


def test_the_ranks_gradient_asks_for_what_is_divided_only_where_it_is_trained() -> None:
    for precision, kept in (("bf16", 1), ("fp32", 0)):
        piece = answered(precision=precision).step.runs[1].part.pieces[0][0]
        divided = {row.reads[0] for row in piece.section.rows if row.name == "div"}
        temporaries = {len(row.backward_temporaries) for row in piece.section.rows if row.name == "div"}
        assert len(divided & piece.life.saved) == kept * len(divided)
        assert temporaries == {2 * kept}
