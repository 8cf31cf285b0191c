"""The operators' cases: enough, each once, thin and odd ones and real models' among them."""

import subprocess
import sys
from collections import Counter

import pytest

from validation.operator_calls import OPERATORS
from validation.operator_shapes import (
    DTYPE_BYTES,
    MODELS,
    TENSOR_BYTES,
    OperatorCase,
    heads_of,
    linear_layers,
    operator_cases,
)

CASES = operator_cases()
MIB, GIB = 2**20, 2**30


def of(operator: str) -> list[OperatorCase]:
    return [case for case in CASES if case.operator == operator]


def test_every_case_is_there_once_and_every_operator_has_cases() -> None:
    assert max(Counter(case.id for case in CASES).values()) == 1
    assert {case.operator for case in CASES} == set(OPERATORS)


def test_an_id_names_all_that_tells_cases_apart() -> None:
    shape = {"parameters": 4, "tensors": 1}
    case = OperatorCase(operator="adamw", phase="optimizer", shape=shape, dtype="fp32", backend="fused")
    assert case.id == "adamw?phase=optimizer&parameters=4&tensors=1&dtype=fp32&backend=fused"


def test_at_least_200_matrix_products_thin_and_odd_ones_in_every_dtype() -> None:
    sizes = {tuple(case.shape[name] for name in ("M", "N", "K")) for case in of("matmul")}
    assert len(sizes) >= 200
    assert {case.dtype for case in of("matmul")} == {"bf16", "fp16", "fp32", "tf32"}
    assert set(DTYPE_BYTES) == {case.dtype for case in of("matmul")}
    assert {1, 8, 16, 64} <= {m for m, _, _ in sizes}
    assert len([size for size in sizes if any(length % 8 for length in size[1:])]) >= 7
    assert {case.shape["layout"] for case in of("matmul")} == {"nt", "nn", "tn"}


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        # c_attn, c_proj, c_fc, mlp.c_proj, lm_head of n_embd = 768.
        ("gpt2", [(768, 768), (768, 3072), (2304, 768), (3072, 768), (50257, 768)]),
        # q and o; k and v of 8 heads of 128; gate and up; down; lm_head.
        ("llama-3.1-8b", [(1024, 4096), (4096, 4096), (4096, 14336), (14336, 4096), (128256, 4096)]),
        # 16 heads of 128 on a hidden size of 1024: q and o are not square.
        ("qwen3-0.6b", [(1024, 1024), (1024, 2048), (1024, 3072), (2048, 1024), (3072, 1024), (151936, 1024)]),
    ],
)
def test_linear_layers_are_those_of_the_models_config(model: str, layers: list[tuple[int, int]]) -> None:
    assert linear_layers((model,)) == layers


def test_a_linear_layers_gradients_multiply_the_same_sizes() -> None:
    shapes = {(case.shape["M"], case.shape["N"], case.shape["K"], case.shape["layout"]) for case in of("matmul")}
    for n, k in linear_layers(MODELS):
        assert {(8192, n, k, "nt"), (8192, k, n, "nn"), (n, k, 8192, "tn")} <= shapes


def test_head_size_is_the_configs_or_what_the_heads_leave() -> None:
    llama = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert heads_of(llama) == (4, 2, 16)
    assert heads_of(llama | {"head_dim": 32}) == (4, 2, 32)


def test_attention_is_asked_of_every_backend_grouped_long_and_for_one_token() -> None:
    cases = of("attention")
    assert {case.backend for case in cases} == {"flash", "efficient", "cudnn", "math"}
    assert {case.dtype for case in cases} == {"bf16", "fp16", "fp32"}
    assert {case.phase for case in cases} == {"forward", "backward"}
    assert {case.shape["causal"] for case in cases} == {True, False}
    assert any(case.shape["heads"] != case.shape["kv_heads"] for case in cases)
    assert max(case.shape["S"] for case in cases if case.backend != "math") == 32768
    decode = [case.shape for case in cases if case.shape["S"] == 1]
    assert decode
    assert not any(shape["causal"] for shape in decode)


def test_sizes_go_from_64_kib_to_1_gib() -> None:
    assert (TENSOR_BYTES[0], TENSOR_BYTES[-1]) == (65536, GIB)
    for operator in ("copy", "cast", "add", "mul", "silu", "gelu", "dropout"):
        sizes = {case.shape["elements"] * DTYPE_BYTES[case.dtype] for case in of(operator)}
        assert sizes == set(TENSOR_BYTES)
    sizes = {case.shape["rows"] * case.shape["columns"] * DTYPE_BYTES[case.dtype] for case in of("softmax")}
    assert sizes == set(TENSOR_BYTES)


def test_adamw_keeps_its_parameters_in_tensors_of_at_most_16_mi() -> None:
    shapes = [case.shape for case in of("adamw")]
    assert {case.backend for case in of("adamw")} == {"foreach", "fused"}
    assert {shape["parameters"] for shape in shapes} == {MIB * 4**n for n in range(6)}
    assert all(shape["parameters"] <= shape["tensors"] * 16 * MIB for shape in shapes)
    assert all(shape["parameters"] % shape["tensors"] == 0 for shape in shapes)


def test_the_cases_are_known_without_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = sys.modules['calc'] = None\n"
        "from validation.operator_shapes import operator_cases; print(len(operator_cases()))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == f"{len(CASES)}\n"
