"""The operators of the transformers library's models, as rows of the operations they run (transformers 5.23.0)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from .dimensions import LookUp, LookUpPart
from .dtype import DType
from .kinds import Activation
from .ledger import Component, Gradient, Kind, Product, Row, Shape, Tensor
from .primitives import (
    add,
    cast,
    dropout,
    frame,
    like,
    matmul,
    multiply,
    power,
    scale,
    shift,
    unary,
)

TOKENS: Shape = ("B", "S")
LAST_TOKENS: Shape = ("B", 1)
"""One of each sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """Types: of the weights, of matrix products, and whether autocast casts between them."""

    weights: DType
    compute: DType
    outputs: DType | None = None
    """Of linears that give their input's type under autocast; none = the products'."""
    float8: bool = False
    """Linears multiply in fp8 (torchao's Float8Linear)."""
    within_autocast: bool = False
    """Autocast is on though the weights have the products' type already."""

    @property
    def linear(self) -> DType:
        """Of a linear's output, where its input is in the weights' type."""
        return self.outputs or self.compute

    def of(self, weights: DType) -> "Numerics":
        """Those of an adapter's own weights: where no autocast casts, its products are in their type."""
        if self.autocast:
            return Numerics(weights=weights, compute=self.compute, within_autocast=True)
        return Numerics(weights=weights, compute=weights)

    @property
    def autocast(self) -> bool:
        return self.within_autocast or self.casts_weights

    @property
    def casts_weights(self) -> bool:
        """Autocast casts the model's weights, too."""
        return self.weights is not self.compute


CAST = " cast"
"""After a weight's name: what autocast makes of it."""

CORE_MODULE = "core"
"""What the rows from q, k, v to the attention output are stamped with."""

POSITION_IDS = Tensor("position_ids", ("S",), DType.INT64)
"""The model's frame holds them, and passes them along to the attention function; so a checkpoint's closure keeps
them."""


def stamped(rows: Iterable[Row], component: Component, module: str) -> list[Row]:
    """Rows, with where they belong; those of a module inside keep its name."""
    return [replace(row, component=component, module=row.module or module) for row in rows]


def parameter(name: str, shape: Shape, numerics: Numerics, num_columns: int = 0) -> Tensor:
    return Tensor(name, shape, numerics.weights, Kind.PARAMETERS, trainable=True, num_columns=num_columns)


def autocast_input(x: Tensor, numerics: Numerics, use: str) -> tuple[list[Row], Tensor]:
    """The cast autocast makes of an input for one lower-precision operation; not cached, so each use makes its own."""
    if not numerics.autocast or x.dtype is numerics.compute:
        return [], x
    lower = like(x, f"{x.name} cast for {use}", dtype=numerics.compute)
    return [cast(x, lower)], lower


def autocast_weight(weight: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """The cast autocast makes of a weight; of a trained one it is cached until the end of forward
    (aten/src/ATen/autocast_mode.cpp)."""
    if not numerics.autocast or weight.dtype is numerics.compute:
        return [], weight
    lower = Tensor(f"{weight.name}{CAST}", weight.shape, numerics.compute, Kind.AUTOCAST_WEIGHTS)
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
    """nn.Linear, or GPT-2's Conv1D: [..., in] -> [..., out], weight out·in, 2·out·in FLOPs for each of the others."""
    weight = weight or parameter(f"{name}.weight", (*out_dims, *in_dims), numerics, num_columns=len(in_dims))
    b = parameter(f"{name}.bias", out_dims, numerics) if bias else None
    product = Product((), out.shape[: -len(out_dims)], out_dims, in_dims)
    if numerics.float8:
        from .float8 import float8_linear  # few steps have any

        return float8_linear(name, x, weight, b, out, product, numerics)
    cast_x, lower_x = autocast_input(x, numerics, name)
    cast_weight, weight = autocast_weight(weight, numerics)
    cast_bias: list[Row] = []
    if b is not None:
        cast_bias, b = autocast_weight(b, numerics)
    # autocast casts a call's last argument first: nn.Linear's is the bias, addmm's (Conv1D) the weight.
    casts = [*cast_weight, *cast_x, *cast_bias] if conv1d else [*cast_bias, *cast_weight, *cast_x]
    row = matmul("linear", lower_x, weight, out, product, bias=b, transposed=not conv1d)
    return [replace(row, module=name) for row in (*casts, row, frame(x))]


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


def dropped(x: Tensor, name: str, *, on: bool) -> tuple[list[Row], Tensor]:
    """nn.Dropout, which is nothing at probability 0."""
    if not on:
        return [], x
    out = like(x, name)
    return [dropout(x, out)], out


def embedding(weight: Tensor, indices: Tensor, out: Tensor) -> Row:
    """nn.Embedding: a look-up; keeps the indices. The dense gradient has the weight's shape; of many indices CUDA's
    kernel sorts them and sums up to ten rows of the gradient in fp32 before it adds those of one token
    (embedding_dense_backward_cuda in Embedding.cu, embedding_backward_cuda_kernel in EmbeddingBackwardKernel.cu).

    Left out: cub's temporaries, which are gone before the sums are made (docs/cuda_kernels.md).
    """
    rows, *columns = weight.shape
    look_up = partial(LookUpPart, out.shape[:-1], (rows,), tuple(columns))
    in_backward = {
        "sorted indices": (look_up(LookUp.INDICES),),
        "where they were": (look_up(LookUp.INDICES),),
        "where each token begins": (look_up(LookUp.INDICES),),
        "number of tokens": (look_up(LookUp.ONE),),
        "sums of each token": (look_up(LookUp.TOKENS),),
        "first sum of each token": (look_up(LookUp.TOKENS),),
        "number of sums": (look_up(LookUp.ONE),),
        "where each sum begins": (look_up(LookUp.SUMS),),
    }
    sums = Tensor(f"sums of ∂{out.name}", (look_up(LookUp.SUMS), *columns), DType.FP32, Kind.TEMPORARIES)
    return Row(
        name="embedding",
        reads=(weight, indices),
        writes=(out,),
        gradients=(Gradient(of=weight),),
        saves=(indices,),
        backward_temporaries=(
            *(
                Tensor(f"{out.name}: {name}", shape, DType.INT64, Kind.TEMPORARIES)
                for name, shape in in_backward.items()
            ),
            sums,
        ),
    )
