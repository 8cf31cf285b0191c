"""The operators of the transformers library's models, as rows of the operations they run (transformers 5.23.0)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .architecture import Activation
from .dtype import DType
from .ledger import Component, Gradient, Kind, Product, Row, Shape, Tensor
from .primitives import (
    add,
    cast,
    copy,
    dropout,
    frame,
    like,
    matmul,
    multiply,
    part,
    power,
    scale,
    shift,
    softmax,
    unary,
    view,
    wider,
)
from .scenario import Attention

TOKENS: Shape = ("B", "S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """Types: of the weights, of matrix products, and whether autocast casts between them."""

    weights: DType
    compute: DType

    @property
    def autocast(self) -> bool:
        return self.weights is not self.compute


CORE_MODULE = "core"
"""What the rows from q, k, v to the attention output are stamped with."""

POSITION_IDS = Tensor("position_ids", ("S",), DType.INT64)
"""The model's frame holds them, and passes them along to the attention function; so a checkpoint's closure keeps
them."""


def stamped(rows: Iterable[Row], component: Component, module: str) -> list[Row]:
    """Rows, with where they belong; those of a module inside keep its name."""
    return [replace(row, component=component, module=row.module or module) for row in rows]


def parameter(name: str, shape: Shape, numerics: Numerics) -> Tensor:
    return Tensor(name, shape, numerics.weights, Kind.PARAMETERS, trainable=True)


def autocast_input(x: Tensor, numerics: Numerics, use: str) -> tuple[list[Row], Tensor]:
    """The cast autocast makes of an input for one lower-precision operation; not cached, so each use makes its own."""
    if not numerics.autocast or x.dtype is numerics.compute:
        return [], x
    lower = like(x, f"{x.name} cast for {use}", dtype=numerics.compute)
    return [cast(x, lower)], lower


def autocast_weight(weight: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """The cast autocast makes of a weight; of a trained one it is cached until the end of forward
    (aten/src/ATen/autocast_mode.cpp)."""
    if not numerics.autocast:
        return [], weight
    lower = Tensor(f"{weight.name} cast", weight.shape, numerics.compute, Kind.AUTOCAST_WEIGHTS)
    return [cast(weight, lower)], lower


def linear(
    name: str,
    x: Tensor,
    out: Tensor,
    in_dims: Shape,
    out_dims: Shape,
    numerics: Numerics,
    *,
    bias: bool = False,
    weight: Tensor | None = None,
    conv1d: bool = False,
) -> list[Row]:
    """nn.Linear, or GPT-2's Conv1D: [B, S, in] -> [B, S, out], weight out·in, 2·B·S·in·out FLOPs."""
    cast_x, lower_x = autocast_input(x, numerics, name)
    weight = weight or parameter(f"{name}.weight", (*out_dims, *in_dims), numerics)
    cast_weight, weight = autocast_weight(weight, numerics)
    cast_bias: list[Row] = []
    b = None
    if bias:
        cast_bias, b = autocast_weight(parameter(f"{name}.bias", out_dims, numerics), numerics)
    product = Product((), TOKENS, out_dims, in_dims)
    # autocast casts a call's last argument first: nn.Linear's is the bias, addmm's (Conv1D) the weight.
    casts = [*cast_weight, *cast_x, *cast_bias] if conv1d else [*cast_bias, *cast_weight, *cast_x]
    row = matmul("linear", lower_x, weight, out, product, bias=b, transposed=not conv1d)
    return [replace(row, module=name) for row in (*casts, row, frame(x))]


def rms_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """LlamaRMSNorm.forward: x·rsqrt(mean(x²) + ε) in fp32, then the weight."""
    statistics: Shape = x.shape[: -len(dims)]
    rows = []
    x32 = x
    if x.dtype is not DType.FP32:
        x32 = like(x, f"{name}.x in fp32", dtype=DType.FP32)
        rows.append(cast(x, x32))
    squares = like(x32, f"{name}.squares")
    variance, shifted, rstd = (
        like(x32, f"{name}.{part}", shape=statistics) for part in ("variance", "variance + eps", "rstd")
    )
    normed = like(x32, f"{name}.normalised")
    rows += [
        power(x32, squares),
        scale(squares, variance, name="mean"),
        shift(variance, shifted),
        _rsqrt(shifted, rstd),
        multiply(x32, rstd, normed),
    ]
    rounded = normed
    if x.dtype is not DType.FP32:
        rounded = like(x, f"{name}.normalised, rounded")
        rows.append(cast(normed, rounded))
    weight = parameter(f"{name}.weight", dims, numerics)
    out = like(x, out_name, dtype=wider(weight.dtype, rounded.dtype))
    rows += [multiply(weight, rounded, out), frame(x, normed, variance)]
    return stamped(rows, Component.NORM, name), out


def _rsqrt(x: Tensor, out: Tensor) -> Row:
    """Keeps its result; `-0.5 * grad * result.pow(3)` makes two temporaries."""
    inner = tuple(like(out, f"{part_name} in rsqrt_backward") for part_name in ("power", "scaled gradient"))
    return replace(unary("rsqrt", x, out, saves_output=True), backward_temporaries=inner)


def layer_norm(name: str, x: Tensor, out_name: str, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """F.layer_norm: keeps its input, and mean and reciprocal deviation in fp32 (CUDA's accumulation type)."""
    mean, rstd = (Tensor(f"{name}.{part}", TOKENS, DType.FP32) for part in ("mean", "rstd"))
    weight, bias = (parameter(f"{name}.{part}", ("H",), numerics) for part in ("weight", "bias"))
    out = like(x, out_name)
    row = Row(
        name="layer_norm",
        reads=(x, weight, bias),
        writes=(out, mean, rstd),
        gradients=(Gradient(of=x, needs=(weight,)), Gradient(of=weight), Gradient(of=bias)),
        saves=(x, mean, rstd),
        elementwise_flops=1,
    )
    return stamped([row], Component.NORM, name), out


def rotary(name: str, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[list[Row], Tensor]:
    """apply_rotary_pos_emb on one of q, k: x·cos + rotate_half(x)·sin."""
    *outer, _ = x.shape
    first, second, negated = (
        like(x, f"{name}.{half} half", shape=(*outer, "D/2")) for half in ("first", "second", "negated")
    )
    rotated = like(x, f"{name}.rotated")
    dtype = wider(x.dtype, cos.dtype)
    straight, turned, out = (
        like(x, part_name, dtype=dtype)
        for part_name in (f"{name}·cos", f"{name}.rotated·sin", f"{name} with positions")
    )
    rows = [
        multiply(x, cos, straight),
        part(x, (first,)),
        part(x, (second,)),
        scale(second, negated, name="neg"),
        Row(
            name="cat",
            reads=(negated, first),
            writes=(rotated,),
            gradients=tuple(Gradient(of=half, passes=True, viewed=True) for half in (negated, first)),
        ),
        multiply(rotated, sin, turned),
        add(straight, turned, out),
    ]
    return rows, out


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCore:
    """The facts that decide which tensors the way from q, k, v to the attention output makes."""

    kernel: Attention
    dropout: bool
    fp32_softmax: bool
    """softmax(dtype=float32), as Llama's; GPT-2's keeps the type it gets."""
    grouped: bool
    """Fewer key/value heads than query heads."""
    one_sequence: bool
    one_head: bool
    one_key_value_head: bool

    @property
    def merges_heads_by_copy(self) -> bool:
        """[B, N, S, D] stored as [B, S, N, D] becomes [B·N, S, D] by a copy, unless one of the two dimensions is 1."""
        return not (self.one_sequence or self.one_head)

    def merges_key_value_heads_by_copy(self, *, cast: bool) -> bool:
        """The same of k and v: repeated heads lie in that order already, unless they are an expanded view that no
        cast has written out."""
        written_out = self.grouped and (cast or not self.one_key_value_head)
        return self.merges_heads_by_copy and not written_out


HEADS: Shape = ("B", "S", "N", "D")
KEY_VALUE_HEADS: Shape = ("B", "S", "K", "D")
SCORES: Shape = ("B", "N", "S", "S")
SCORES_PRODUCT = Product(("B", "N"), ("S",), ("S",), ("D",))
VALUES_PRODUCT = Product(("B", "N"), ("S",), ("D",), ("S",))


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, core: AttentionCore, numerics: Numerics
) -> tuple[list[Row], Tensor, Tensor]:
    """eager_attention_forward: softmax(q·kᵀ/√d + mask)·v with every intermediate in memory.

    Gives the rows, the output and the probabilities, which the caller holds.
    """
    rows: list[Row] = []
    key, value = k, v
    if core.grouped:
        key, value = like(k, "k repeated", shape=HEADS), like(v, "v repeated", shape=HEADS)
        # A single head is repeated by an expanded view.
        repeat = view if core.one_key_value_head else copy
        rows += [repeat(each, repeated, copies_gradient=True) for each, repeated in ((k, key), (v, value))]
    repeated = (key, value)
    rows_k, key = autocast_input(key, numerics, "scores")
    rows_q, query = autocast_input(q, numerics, "scores")
    rows += [*rows_k, *rows_q]
    merge_q, query = _merged(query, core.merges_heads_by_copy)
    merge_k, key = _merged(key, core.merges_key_value_heads_by_copy(cast=bool(rows_k)))
    rows += [*merge_q, *merge_k]
    products, scaled = (Tensor(f"scores{suffix}", SCORES, numerics.compute) for suffix in ("", " scaled"))
    masked = like(scaled, "scores masked", dtype=wider(scaled.dtype, mask.dtype))
    rows += [
        matmul("scores", query, key, products, SCORES_PRODUCT),
        scale(products, scaled),
        add(scaled, mask, masked, name="mask"),
    ]
    # Llama casts back to the queries' type, which positions make fp32 under autocast; GPT-2 to the values'.
    result_dtype = q.dtype if core.fp32_softmax else v.dtype
    rows_softmax, weights = _attention_softmax(masked, result_dtype, core, numerics)
    rows += rows_softmax
    if core.dropout:
        dropped = like(weights, "attention weights after dropout")
        rows.append(dropout(weights, dropped))
        weights = dropped
    rows_v, value = autocast_input(value, numerics, "values")
    rows_w, lower_weights = autocast_input(weights, numerics, "values")
    merge_v, value = _merged(value, core.merges_key_value_heads_by_copy(cast=bool(rows_v)))
    rows += [*rows_v, *rows_w, *merge_v]
    heads, out = (Tensor(name, HEADS, numerics.compute) for name in ("attention by head", "attention output"))
    rows.append(matmul("values", lower_weights, value, heads, VALUES_PRODUCT))
    rows.append(view(heads, out) if core.one_head else copy(heads, out, copies_gradient=core.merges_heads_by_copy))
    rows.append(frame(*repeated, POSITION_IDS))
    return rows, out, weights


def _merged(x: Tensor, by_copy: bool) -> tuple[list[Row], Tensor]:
    """matmul's reshape of [B, N, S, D] to [B·N, S, D]."""
    if not by_copy:
        return [], x
    out = like(x, f"{x.name}, heads together")
    return [copy(x, out, name="reshape")], out


def _attention_softmax(
    masked: Tensor, result_dtype: DType, core: AttentionCore, numerics: Numerics
) -> tuple[list[Row], Tensor]:
    """The probabilities in `result_dtype`; through fp32 where the code or autocast says so."""
    rows: list[Row] = []
    scores = masked
    through_fp32 = core.fp32_softmax or numerics.autocast
    dtype = DType.FP32 if through_fp32 else masked.dtype
    # One CUDA kernel takes fp16 to an fp32 softmax (aten/src/ATen/native/SoftMax.cpp); for bf16 there is an fp32 copy.
    fused = masked.dtype is DType.FP16 and core.fp32_softmax
    if masked.dtype is not dtype and not fused:
        upcast = like(masked, "scores in fp32", dtype=dtype)
        rows.append(cast(masked, upcast))
        masked = upcast
    weights = like(masked, "attention weights", dtype=dtype)
    rows.append(softmax(masked, weights))
    if dtype is not result_dtype:
        rounded = like(weights, f"attention weights in {result_dtype.label}", dtype=result_dtype)
        rows.append(cast(weights, rounded))
        weights = rounded
    if core.fp32_softmax:
        rows.append(frame(scores))  # one statement: its variable holds the old value until both calls are done
    return rows, weights


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, core: AttentionCore, numerics: Numerics
) -> tuple[list[Row], Tensor]:
    """scaled_dot_product_attention with the flash kernel: no [S, S] tensor; backward computes the scores again.

    Temporaries of backward: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd. Left out: the
    accumulators of a
    split forward, which the kernel chooses by the number of multiprocessors for short batches.
    """
    rows: list[Row] = []
    inputs = []
    for tensor in (q, k, v):
        casts, tensor = autocast_input(tensor, numerics, "attention")
        rows += casts
        inputs.append(tensor)
    q, k, v = inputs
    out = Tensor("attention output", HEADS, numerics.compute)
    statistics = Tensor("logsumexp", ("B", "N", "S"), DType.FP32)
    generator = (Tensor("generator state", (2,), DType.INT64), Tensor("generator offset", (), DType.INT64))
    temporaries = [
        Tensor("softmax_d", ("B", "N", "S⌈128⌉"), DType.FP32),
        Tensor("dq accumulator", ("B", "S⌈128⌉", "N", "D⌈32⌉"), DType.FP32),
    ]
    if core.grouped:
        temporaries += [Tensor(f"d{name} per query head", HEADS, numerics.compute) for name in ("k", "v")]
    rows.append(
        Row(
            name="flash_attention",
            reads=(q, k, v),
            writes=(out, statistics, *generator),
            gradients=tuple(Gradient(of=tensor) for tensor in (q, k, v)),
            saves=(q, k, v, out, statistics, *generator),
            products=(SCORES_PRODUCT, VALUES_PRODUCT),
            backward_products=(SCORES_PRODUCT, SCORES_PRODUCT, VALUES_PRODUCT, VALUES_PRODUCT),
            backward_rerun=(SCORES_PRODUCT,),
            backward_temporaries=tuple(temporaries),
            elementwise_flops=4,  # inside the kernel: scaling 1, softmax 3
            elementwise_shape=SCORES,
        )
    )
    rows.append(frame(POSITION_IDS))
    return rows, out


def activation(function: Activation, x: Tensor, name: str, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """An activation function of ACT2FN on `x`."""
    if function is Activation.GELU_NEW:
        return _gelu_new(x, name, numerics)
    out = like(x, name)
    saves_output = function is Activation.RELU
    return [unary(function, x, out, saves_output=saves_output), frame(x)], out


def _gelu_new(x: Tensor, name: str, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """NewGELUActivation: 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))) as eight Python operations; autocast runs pow in
    fp32."""
    rows: list[Row] = []
    half = like(x, f"{name}.half")
    base = x
    rows.append(scale(x, half))
    if numerics.autocast:
        base = like(x, f"{name}.x in fp32", dtype=DType.FP32)
        rows.append(cast(x, base))
    cube, scaled, inner, argument, tanh, gate = (
        like(base, f"{name}.{part_name}")
        for part_name in ("cube", "cube scaled", "inner", "argument", "tanh", "1 + tanh")
    )
    out = like(gate, name)
    rows += [
        power(base, cube),
        scale(cube, scaled),
        add(x, scaled, inner),
        scale(inner, argument),
        unary("tanh", argument, tanh, saves_output=True),
        shift(tanh, gate),
        multiply(half, gate, out),
        frame(x),
    ]
    return rows, out


def embedding(weight: Tensor, indices: Tensor, out: Tensor) -> Row:
    """nn.Embedding: a look-up; keeps the indices. The dense gradient has the weight's shape.

    Left out: the sort's temporaries in backward, which depend on the data (aten/src/ATen/native/cuda/Embedding.cu).
    """
    return Row(
        name="embedding", reads=(weight, indices), writes=(out,), gradients=(Gradient(of=weight),), saves=(indices,)
    )


def cross_entropy(logits: Tensor, *, one_sequence: bool) -> tuple[list[Row], Tensor]:
    """ForCausalLMLoss: fp32 logits, labels shifted by padding, log-softmax, negative log-likelihood; ends with the
    mean loss."""
    rows: list[Row] = []
    values = logits
    if logits.dtype is not DType.FP32:
        values = like(logits, "logits in fp32", dtype=DType.FP32)
        rows.append(cast(logits, values))
    padded = Tensor("labels padded", ("B", "S+1"), DType.INT64)
    target = Tensor("target", TOKENS, DType.INT64)
    log_probabilities = like(values, "log probabilities")
    loss, weight = (Tensor(name, (), DType.FP32) for name in ("loss", "number of targets"))
    rows += [
        Row(name="pad", reads=(), writes=(padded,)),
        # The shifted labels of one sequence lie side by side already: no copy is made.
        Row(name="shift", reads=(padded,), writes=(target,), is_view=one_sequence),
        softmax(values, log_probabilities, name="log_softmax"),
        Row(
            name="nll_loss",
            reads=(log_probabilities, target),
            writes=(loss, weight),
            gradients=(Gradient(of=log_probabilities),),
            saves=(log_probabilities, target, weight),
        ),
        frame(values, padded),
    ]
    return stamped(rows, Component.LOSS, "loss_function"), loss
