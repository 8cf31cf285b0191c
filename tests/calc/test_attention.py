"""The attention core row by row, by each kernel: what is kept, shapes, types and temporaries, counted by hand."""

from collections.abc import Iterable
from typing import Any

import pytest

from calc.attention import HEADS, KEY_VALUE_HEADS, AttentionCore, eager_attention
from calc.dtype import DType
from calc.kinds import Softmax
from calc.ledger import Row, Tensor, requires_gradient, saved_for_backward
from calc.operators import Numerics
from calc.scenario import Attention
from calc.sdpa import sdpa_attention
from calc.sizes import Sizes

FP32, BF16, FP16, BOOL, INT64 = DType.FP32, DType.BF16, DType.FP16, DType.BOOL, DType.INT64
HALF = Numerics(weights=BF16, compute=BF16)
SINGLE = Numerics(weights=FP32, compute=FP32)
AUTOCAST = Numerics(weights=FP32, compute=BF16)
# Primes but N = 2K, so that no product of them equals another by accident; roundings of S = 5 and D = 34.
SIZES = Sizes({"B": 3, "S": 5, "N": 26, "K": 13, "D": 34})
SIZES |= {"S⌈8⌉": 8, "S⌈32⌉": 32, "S⌈128⌉": 128, "D⌈8⌉": 40, "D⌈32⌉": 64, "W": 101}


def saved(rows: Iterable[Row], *roots: Tensor) -> dict[str, DType]:
    """What the nodes keep if `roots` need gradients: names and types."""
    rows = list(rows)
    required = requires_gradient(rows, roots)
    return {tensor.name: tensor.dtype for row in rows for tensor in saved_for_backward(row, required)}


def named(rows: Iterable[Row], name: str) -> Row:
    return next(row for row in rows if row.name == name)


def written(rows: Iterable[Row]) -> dict[str, int]:
    """Bytes of all that is made, views left out."""
    return {tensor.name: tensor.nbytes(SIZES) for row in rows if not row.is_view for tensor in row.writes}


def core(kernel: Attention = Attention.FLASH, *, grouped: bool = False, **facts: Any) -> AttentionCore:
    defaults: dict[str, Any] = dict.fromkeys(("dropout", "one_sequence", "one_head", "one_key_value_head"), False)
    defaults |= {"masked": kernel is Attention.EAGER, "softmax": Softmax.ROUNDED}
    return AttentionCore(kernel=kernel, grouped=grouped, **defaults | facts)


def queries_keys_values(dtype: DType, *, grouped: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    shape = KEY_VALUE_HEADS if grouped else HEADS
    return Tensor("q", HEADS, dtype), Tensor("k", shape, dtype), Tensor("v", shape, dtype)


EAGER = core(Attention.EAGER)


def eager_saved(facts: AttentionCore, dtype: DType, numerics: Numerics, *, grouped: bool = False) -> dict[str, DType]:
    q, k, v = queries_keys_values(dtype, grouped=grouped)
    rows, _, _ = eager_attention(q, k, v, facts, numerics)
    return saved(rows, q, k, v)


def test_eager_attention_of_gpt2() -> None:
    # The products keep their factors, brought together by head in copies; softmax keeps its result: the same tensor.
    assert eager_saved(EAGER, BF16, HALF) == {
        "q, heads together": BF16, "k, heads together": BF16, "v, heads together": BF16, "attention weights": BF16,
    }  # fmt: skip


def test_eager_attention_of_llama_keeps_softmax_in_fp32_and_its_cast() -> None:
    facts = core(Attention.EAGER, grouped=True, softmax=Softmax.IN_FP32)
    kept = eager_saved(facts, BF16, HALF, grouped=True)
    # Repeated keys and values lie by head already.
    assert kept == {
        "q, heads together": BF16, "k repeated": BF16, "v repeated": BF16,
        "attention weights": FP32, "attention weights in bf16": BF16,
    }  # fmt: skip


def test_eager_attention_with_dropout_keeps_mask_and_result() -> None:
    kept = eager_saved(core(Attention.EAGER, dropout=True), BF16, HALF)
    assert kept["attention weights after dropout"] is BF16
    assert kept["attention weights after dropout.mask"] is BOOL
    assert kept["attention weights"] is BF16


def test_one_sequence_needs_no_copies() -> None:
    kept = eager_saved(core(Attention.EAGER, one_sequence=True), BF16, HALF)
    assert kept.keys() == {"q", "k", "v", "attention weights"}


def test_fp16_scores_go_to_an_fp32_softmax_without_a_copy() -> None:
    def upcasts(dtype: DType) -> list[str]:
        q, k, v = queries_keys_values(dtype)
        numerics = Numerics(weights=dtype, compute=dtype)
        rows, _, _ = eager_attention(q, k, v, core(Attention.EAGER, softmax=Softmax.IN_FP32), numerics)
        return [tensor.name for row in rows for tensor in row.writes if tensor.name == "scores in fp32"]

    assert (upcasts(FP16), upcasts(BF16), upcasts(FP32)) == ([], ["scores in fp32"], [])


# --- scaled_dot_product_attention ---------------------------------------------------------------------------------


def attended(
    facts: AttentionCore, numerics: Numerics, dtype: DType | None = None
) -> tuple[list[Row], dict[str, DType]]:
    """The rows, and what they keep."""
    q, k, v = queries_keys_values(dtype or numerics.compute, grouped=facts.grouped)
    rows, out = sdpa_attention(q, k, v, facts, numerics)
    assert (out.shape, out.dtype) == (HEADS, numerics.compute)
    return rows, saved(rows, q, k, v)


@pytest.mark.parametrize("grouped", [False, True])
def test_flash_attention(grouped: bool) -> None:
    q, k, v = queries_keys_values(BF16, grouped=grouped)
    rows, out = sdpa_attention(q, k, v, core(grouped=grouped), HALF)
    row = named(rows, "flash_attention")
    assert saved([row], q, k, v) == {
        "q": BF16, "k": BF16, "v": BF16, "attention output": BF16, "logsumexp": FP32,
        "generator state": INT64, "generator offset": INT64,
    }  # fmt: skip
    statistics = next(tensor for tensor in row.writes if tensor.name == "logsumexp")
    assert statistics.nbytes(SIZES) == 4 * 3 * 26 * 5
    # mha_bwd: softmax_d [B, N, S to 128] and dq's accumulator [B, S to 128, N, D to 32] in fp32; dk, dv per query head.
    temporaries = [tensor.nbytes(SIZES) for tensor in row.backward_temporaries]
    assert temporaries == [4 * 3 * 26 * 128, 4 * 3 * 128 * 26 * 64, *([2 * 3 * 5 * 26 * 34] * 2 if grouped else [])]
    product = 2 * 3 * 26 * 5 * 5 * 34
    assert sum(each.flops(SIZES) for each in row.products) == 2 * product
    assert sum(each.flops(SIZES) for each in (*row.backward_products, *row.backward_rerun)) == 5 * product
    assert row.elementwise_flops == 1 + 3  # scaling, softmax
    assert out.shape == HEADS


def test_flash_attention_pads_other_head_sizes() -> None:
    rows, kept = attended(core(pads_heads=True), HALF)
    padded = 2 * 3 * 5 * 26 * 40
    made = written(rows)
    assert [made[f"{name}, padded"] for name in ("q", "k", "v", "attention output")] == [padded] * 4
    assert made["attention output"] == 2 * 3 * 5 * 26 * 34
    assert {name for name in kept if name.endswith("padded")} == {
        "q, padded", "k, padded", "v, padded", "attention output, padded",
    }  # fmt: skip
    row = named(rows, "flash_attention")
    assert sum(each.flops(SIZES) for each in row.products) == 2 * (2 * 3 * 26 * 5 * 5 * 40)
    # Padded heads lie one after the other; mha_bwd copies the output and its gradient by token.
    assert [tensor.nbytes(SIZES) for tensor in row.backward_temporaries][2:] == [padded] * 2


@pytest.mark.parametrize("lone", ["one_head", "one_token"])
def test_heads_need_no_copy_by_token_where_there_is_one(lone: str) -> None:
    rows, _ = attended(core(Attention.FLASH, pads_heads=True, **{lone: True}), HALF)
    assert len(named(rows, "flash_attention").backward_temporaries) == 2


def test_efficient_attention() -> None:
    rows, kept = attended(core(Attention.EFFICIENT), SINGLE)
    assert kept == {"q": FP32, "k": FP32, "v": FP32, "attention output": FP32, "logsumexp": FP32}
    row = named(rows, "efficient_attention")
    # rows of the statistics in 32s
    assert written(rows) == {"attention output": 4 * 3 * 5 * 26 * 34, "logsumexp": 4 * 3 * 26 * 32}
    product = 2 * 3 * 26 * 5 * 5 * 34
    assert sum(each.flops(SIZES) for each in row.products) == 2 * product
    assert sum(each.flops(SIZES) for each in (*row.backward_products, *row.backward_rerun)) == 5 * product
    # In fp32 delta = sum(∂output·output) is made outside of the kernel: the product, the sum, the sum by head.
    delta = 4 * 3 * 5 * 26
    assert [tensor.nbytes(SIZES) for tensor in row.backward_prelude] == [delta * 34, delta, delta]
    assert [tensor.nbytes(SIZES) for tensor in row.backward_temporaries] == [delta, 4 * 3 * 26 * 101]


def test_efficient_attention_of_half_precision_computes_delta_inside() -> None:
    row = named(attended(core(Attention.EFFICIENT), HALF)[0], "efficient_attention")
    assert (row.backward_prelude, row.temporaries) == ((), ())
    assert len(row.backward_temporaries) == 2


def test_efficient_attention_collects_large_outputs_in_fp32() -> None:
    row = named(attended(core(Attention.EFFICIENT, accumulates_output=True), HALF)[0], "efficient_attention")
    assert [tensor.nbytes(SIZES) for tensor in row.temporaries] == [4 * 3 * 5 * 26 * 34]


@pytest.mark.parametrize(
    ("pads", "kept_bias", "made"),
    [
        (False, "attention bias", {"attention bias": 2 * 3 * 5 * 5}),
        (True, "attention bias, padded", {"attention bias": 2 * 3 * 5 * 5, "attention bias, padded": 2 * 3 * 5 * 8}),
    ],
)
def test_efficient_attention_keeps_its_mask_as_a_bias(pads: bool, kept_bias: str, made: dict[str, int]) -> None:
    rows, kept = attended(core(Attention.EFFICIENT, masked=True, pads_mask=pads), HALF)
    assert {name: kept[name] for name in kept if "bias" in name} == {kept_bias: BF16}
    assert {name: num_bytes for name, num_bytes in written(rows).items() if "bias" in name} == made
    assert named(rows, "where").reads[0].dtype is BOOL


def test_a_mask_has_heads_repeated_first() -> None:
    facts = core(Attention.EFFICIENT, grouped=True, masked=True, repeats_heads=True)
    rows, kept = attended(facts, HALF)
    assert {"k repeated", "v repeated"} <= kept.keys()
    assert written(rows)["k repeated"] == 2 * 3 * 5 * 26 * 34


def test_math_attention() -> None:
    # Products keep their factors brought together by head, softmax its result, which is the product's factor too.
    rows, kept = attended(core(Attention.MATH), SINGLE)
    assert kept == {
        "q scaled, heads together": FP32, "k scaled, heads together": FP32, "v, heads together": FP32,
        "attention weights": FP32,
    }  # fmt: skip
    # the causal bias, from a triangle of bool, is added in place
    assert written(rows)["attention bias"] == 4 * 5 * 5
    assert named(rows, "add_").is_view
    masks = [tensor.nbytes(SIZES) for tensor in named(rows, "softmax").temporaries]
    assert masks == [3 * 26 * 5 * 5, 3 * 26 * 5, 4]


def test_math_attention_of_half_precision_runs_in_fp32() -> None:
    rows, kept = attended(core(Attention.MATH), HALF)
    assert set(kept.values()) == {FP32}
    made = written(rows)
    assert [made[f"{name} in fp32"] for name in "qkv"] == [4 * 3 * 5 * 26 * 34] * 3
    assert made["attention weights, returned"] == 2 * 3 * 26 * 5 * 5  # the second result, which nothing reads


def test_math_attention_repeats_grouped_heads_itself() -> None:
    rows, kept = attended(core(Attention.MATH, grouped=True), HALF)
    assert [row.name for row in rows].count("repeat_interleave") == 2
    assert written(rows)["v repeated"] == 4 * 3 * 5 * 26 * 34
    assert {"k scaled", "v repeated"} <= kept.keys()  # they lie by head: no copies


def test_math_attention_with_dropout_keeps_mask_and_result() -> None:
    _, kept = attended(core(Attention.MATH, dropout=True), SINGLE)
    assert kept["attention weights after dropout"] is FP32
    assert kept["attention weights after dropout.mask"] is BOOL


@pytest.mark.parametrize(("facts", "biases"), [({"one_token": True}, 0), ({"masked": True}, 1), ({}, 1)])
def test_a_lone_token_needs_no_bias(facts: dict[str, bool], biases: int) -> None:
    rows, _ = attended(core(Attention.MATH, **facts), SINGLE)
    assert sum(tensor.name == "attention bias" for row in rows for tensor in row.writes) == biases
    assert (biases == 1) == any(row.name == "add_" for row in rows)


def test_autocast_casts_queries_for_every_kernel() -> None:
    for kernel in (Attention.FLASH, Attention.EFFICIENT, Attention.MATH):
        rows, _ = attended(core(kernel), AUTOCAST, FP32)
        assert written(rows)["q cast for attention"] == 2 * 3 * 5 * 26 * 34
