"""Which operators are timed, at which shapes: written down before they are measured.

The models' shapes come from the catalogue's configs. Imports neither torch nor calc.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal
from urllib.parse import urlencode

from validation.cases import config_of

Phase = Literal["forward", "backward", "optimizer"]
BOTH_PHASES: tuple[Phase, Phase] = ("forward", "backward")

KIB, MIB, GIB = 2**10, 2**20, 2**30
DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "tf32": 4}
"""tf32: fp32 in memory, multiplied as TF32."""

MODELS = (
    "gpt2",
    "gpt2-xl",
    "smollm2-135m",
    "llama-2-7b",
    "llama-3.1-8b",
    "llama-3.2-1b",
    "qwen2.5-0.5b",
    "qwen2.5-7b",
    "qwen3-0.6b",
)
IN_EVERY_DTYPE = ("gpt2", "llama-3.1-8b")

SQUARES = (128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384)
ODD = (127, 257, 777, 1001, 2047, 4095, 4097)
"""No multiple of 8, so no matrix unit takes them whole."""
LONG_SUMS = ((64, 64, 65536), (256, 256, 65536), (1024, 1024, 32768), (4096, 64, 16384))
"""Few outputs, long sums over K: what cuBLAS splits."""
TRAINING_TOKENS = 8192
PREFILL_TOKENS = 512
DECODE_TOKENS = (1, 8, 16, 64)
IN_EVERY_DTYPE_TOKENS = (16, 2048)
EAGER_ATTENTION = ((96, 1024, 1024, 64), (128, 1024, 1024, 64), (32, 4096, 4096, 128), (512, 1, 8192, 128))
"""(batch × heads, queries, keys, head size) of the batched products of eager attention."""

ATTENTION_TOKENS = 8192
SEQUENCES = (512, 1024, 2048, 4096, 8192)
LONG_SEQUENCES = (16384, 32768)
LONGEST_MATH_SEQUENCE = 4096
"""The math backend keeps [S, S] scores of every head, in fp32: 2 GiB for 32 heads at this length."""
ODD_ATTENTION = ((4, 12, 12, 777, 64), (2, 32, 8, 2049, 128), (2, 16, 16, 2048, 80), (2, 8, 4, 2048, 256))
"""(B, heads, kv_heads, S, head_dim): odd lengths, and head sizes that only some kernels take."""
DECODE_BATCHES = (1, 16, 64)
DECODE_CONTEXTS = (1024, 8192, 32768)
BACKENDS = ("flash", "efficient", "cudnn", "math")

NORMS = ("layer_norm", "rms_norm", "transformers_rms_norm")
NORM_ROWS = (1, 256, 4096, 16384)
NORM_COLUMNS = (768, 2048, 4096, 8192)

TENSOR_BYTES = tuple(64 * KIB * 4**n for n in range(8))
"""64 KiB to 1 GiB."""
ONLY_FORWARD = ("copy", "cast", "add", "mul")
BOTH_WAYS = ("silu", "gelu", "dropout", "softmax")
SOFTMAX_COLUMNS = 2048

LOSS_ROWS = (512, 2048, 8192)
EMBEDDING_ROWS = (1, 512, 8192)

PARAMETERS = tuple(MIB * 4**n for n in range(6))
"""1 Mi to 1 Gi parameters."""
LARGEST_PARAMETER = 16 * MIB
"""Elements of one parameter tensor; more parameters are more tensors, as in a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCase:
    """One operator at one shape; `backend` where there are several ways to compute it."""

    operator: str
    phase: Phase
    shape: dict[str, Any]
    dtype: str
    backend: str = ""

    @property
    def id(self) -> str:
        fields = {"phase": self.phase, **self.shape, "dtype": self.dtype, "backend": self.backend}
        return f"{self.operator}?{urlencode({name: value for name, value in fields.items() if value != ''})}"


def operator_cases() -> list[OperatorCase]:
    """All of them, each once, what matters most first."""
    cases = (*matmuls(), *attention(), *pointwise(), *norms(), *losses(), *embeddings(), *optimizers(), nothing())
    return list({case.id: case for case in cases}.values())


def nothing() -> OperatorCase:
    """No kernel at all: the timer's own time, of which every other row's seconds hold about as much."""
    return OperatorCase(operator="nothing", phase="forward", shape={}, dtype="")


# --- matrix products ------------------------------------------------------------------------------------------------


def matmul(m: int, n: int, k: int, dtype: str, layout: str = "nt", batch: int = 1) -> OperatorCase:
    """[M, K] × [K, N]. Layout, as the operands lie in memory: `nt` A[M, K]·B[N, K]ᵀ, a linear layer; `nn` A·B[K, N],
    its input's gradient; `tn` A[K, M]ᵀ·B[K, N], its weight's gradient."""
    shape = {"batch": batch, "M": m, "N": n, "K": k, "layout": layout}
    return OperatorCase(operator="matmul", phase="forward", shape=shape, dtype=dtype)


def matmuls() -> Iterator[OperatorCase]:
    for dtype in DTYPE_BYTES:
        yield from (matmul(size, size, size, dtype) for size in (*SQUARES, *ODD))
        yield from (matmul(*sizes, dtype) for sizes in LONG_SUMS)
        yield from (
            matmul(tokens, n, k, dtype)
            for tokens, (n, k) in product(IN_EVERY_DTYPE_TOKENS, linear_layers(IN_EVERY_DTYPE))
        )
    for n, k in linear_layers(MODELS):
        yield from (matmul(tokens, n, k, "bf16") for tokens in (*DECODE_TOKENS, PREFILL_TOKENS, TRAINING_TOKENS))
        yield matmul(TRAINING_TOKENS, k, n, "bf16", layout="nn")
        yield matmul(n, k, TRAINING_TOKENS, "bf16", layout="tn")
    for batch, queries, keys, head_size in EAGER_ATTENTION:
        yield matmul(queries, keys, head_size, "bf16", batch=batch)
        yield matmul(queries, head_size, keys, "bf16", layout="nn", batch=batch)


def linear_layers(models: tuple[str, ...]) -> list[tuple[int, int]]:
    """(out, in) of the models' linear layers and language-model heads, each once."""
    return sorted({layer for model in models for layer in _layers_of(config_of({"model": model}))})


def _layers_of(config: dict[str, Any]) -> Iterator[tuple[int, int]]:
    hidden, vocabulary = sizes_of(config)
    yield vocabulary, hidden
    if config["model_type"] == "gpt2":
        yield from ((3 * hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden))
        return
    heads, kv_heads, head_dim = heads_of(config)
    intermediate = config["intermediate_size"]
    yield from ((heads * head_dim, hidden), (kv_heads * head_dim, hidden), (hidden, heads * head_dim))
    yield from ((intermediate, hidden), (hidden, intermediate))


def sizes_of(config: dict[str, Any]) -> tuple[int, int]:
    """Hidden size and vocabulary."""
    return config["n_embd" if config["model_type"] == "gpt2" else "hidden_size"], config["vocab_size"]


def heads_of(config: dict[str, Any]) -> tuple[int, int, int]:
    """Query heads, key/value heads, head size."""
    if config["model_type"] == "gpt2":
        return config["n_head"], config["n_head"], config["n_embd"] // config["n_head"]
    heads = config["num_attention_heads"]
    return heads, config["num_key_value_heads"], config.get("head_dim") or config["hidden_size"] // heads


# --- attention ------------------------------------------------------------------------------------------------------


def attention() -> Iterator[OperatorCase]:
    heads_of_models = sorted({heads_of(config_of({"model": model})) for model in MODELS})
    for (heads, kv_heads, head_dim), sequence in product(heads_of_models, SEQUENCES):
        yield from both_ways(ATTENTION_TOKENS // sequence, heads, kv_heads, sequence, head_dim)
    for batch, heads, kv_heads, sequence, head_dim in ODD_ATTENTION:
        yield from both_ways(batch, heads, kv_heads, sequence, head_dim)
    for dtype in ("fp16", "fp32"):
        yield from both_ways(8, 12, 12, 1024, 64, dtype=dtype)
        yield from both_ways(2, 32, 32, 2048, 128, dtype=dtype)
    yield from both_ways(8, 12, 12, 1024, 64, causal=False)
    yield from both_ways(2, 32, 8, 4096, 128, causal=False)
    for sequence in LONG_SEQUENCES:
        yield from both_ways(1, 32, 8, sequence, 128)
    yield from decode_attention()


def both_ways(
    batch: int, heads: int, kv_heads: int, sequence: int, head_dim: int, *, dtype: str = "bf16", causal: bool = True
) -> Iterator[OperatorCase]:
    for backend, phase in product(BACKENDS, BOTH_PHASES):
        if backend != "math" or sequence <= LONGEST_MATH_SEQUENCE:
            shape = attention_shape(batch, heads, kv_heads, sequence, sequence, head_dim, causal)
            yield OperatorCase(operator="attention", phase=phase, shape=shape, dtype=dtype, backend=backend)


def decode_attention() -> Iterator[OperatorCase]:
    """One new token on a context; not causal, since it sees the whole of it."""
    for (heads, kv_heads, head_dim), batch, context, backend in product(
        ((12, 12, 64), (32, 8, 128)), DECODE_BATCHES, DECODE_CONTEXTS, BACKENDS
    ):
        shape = attention_shape(batch, heads, kv_heads, 1, context, head_dim, causal=False)
        yield OperatorCase(operator="attention", phase="forward", shape=shape, dtype="bf16", backend=backend)


def attention_shape(
    batch: int, heads: int, kv_heads: int, queries: int, keys: int, head_dim: int, causal: bool
) -> dict[str, Any]:
    return {
        "B": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "S": queries,
        "S_kv": keys,
        "head_dim": head_dim,
        "causal": causal,
    }


# --- what moves bytes -----------------------------------------------------------------------------------------------


def pointwise() -> Iterator[OperatorCase]:
    """The size is that of one operand."""
    for dtype, size in product(("bf16", "fp32"), TENSOR_BYTES):
        elements = size // DTYPE_BYTES[dtype]
        shape = {"elements": elements}
        for operator in ONLY_FORWARD:
            yield OperatorCase(operator=operator, phase="forward", shape=shape, dtype=dtype)
        for operator, phase in product(BOTH_WAYS, BOTH_PHASES):
            rows = {"rows": elements // SOFTMAX_COLUMNS, "columns": SOFTMAX_COLUMNS}
            own = rows if operator == "softmax" else shape
            yield OperatorCase(operator=operator, phase=phase, shape=own, dtype=dtype)


def norms() -> Iterator[OperatorCase]:
    for operator, dtype, rows, columns, phase in product(NORMS, ("bf16", "fp32"), NORM_ROWS, NORM_COLUMNS, BOTH_PHASES):
        yield OperatorCase(operator=operator, phase=phase, shape={"rows": rows, "columns": columns}, dtype=dtype)


def losses() -> Iterator[OperatorCase]:
    vocabularies = sorted({sizes_of(config_of({"model": model}))[1] for model in MODELS})
    for dtype, rows, vocabulary, phase in product(("bf16", "fp32"), LOSS_ROWS, vocabularies, BOTH_PHASES):
        shape = {"rows": rows, "vocabulary": vocabulary}
        yield OperatorCase(operator="cross_entropy", phase=phase, shape=shape, dtype=dtype)


def embeddings() -> Iterator[OperatorCase]:
    tables = sorted({sizes_of(config_of({"model": model})) for model in MODELS})
    for (hidden, vocabulary), rows, phase in product(tables, EMBEDDING_ROWS, BOTH_PHASES):
        shape = {"rows": rows, "vocabulary": vocabulary, "columns": hidden}
        yield OperatorCase(operator="embedding", phase=phase, shape=shape, dtype="bf16")


def optimizers() -> Iterator[OperatorCase]:
    for backend, dtype, parameters in product(("foreach", "fused"), ("fp32", "bf16"), PARAMETERS):
        shape = {"parameters": parameters, "tensors": max(1, parameters // LARGEST_PARAMETER)}
        yield OperatorCase(operator="adamw", phase="optimizer", shape=shape, dtype=dtype, backend=backend)
