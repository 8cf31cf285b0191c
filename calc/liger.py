"""Liger's kernels in place of a model's own operators: rotary positions, RMSNorm, SwiGLU (liger_kernel 0.8.5).

As `apply_liger_kernel_to_llama` and its likes for mistral, qwen2 and qwen3 patch a model. Triton runs on GPUs only, so
the rows follow the source (liger_kernel/ops) and are traced with an emulation that allocates and keeps the same. Left
out: all but one of the rows of RMSNorm's weight gradient, of which each multiprocessor makes one (a split reduction).
"""

from .architecture import Architecture
from .attention import AttentionCore
from .dtype import DType
from .kinds import Activation
from .ledger import Component, Gradient, Row, Shape, Tensor
from .operators import Numerics, parameter, stamped
from .primitives import frame, like

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Of those in MODEL_TYPE_TO_APPLY_LIGER_FN the ones whose kernels were traced."""
LARGEST_ROW = 65536
"""MAX_FUSED_SIZE: the longest row one program takes (calculate_settings in ops/utils.py)."""


def liger_obstacle(architecture: Architecture) -> str | None:
    """Why Liger has no kernels for a model, or None."""
    if architecture.model_type not in FAMILIES:
        return f"Liger's kernels are modelled for {', '.join(sorted(FAMILIES))}, not for {architecture.model_type}"
    if any(layer.kind.activation is not Activation.SILU for layer, _ in architecture.layers):
        return "Liger's MLP computes SiLU, and this model has another activation"
    if max(architecture.hidden_size, *(layer.intermediate_size for layer, _ in architecture.layers)) > LARGEST_ROW:
        return f"Liger's kernels take rows of at most {LARGEST_ROW:,} elements"
    return None


RMS_NORM_FLOPS = 3
"""Square, scaling by the statistics, weight."""
ROTARY_FLOPS = 3
"""Two products and their sum."""
SILU_MUL_FLOPS = 2


def liger_rms_norm(name: str, x: Tensor, out_name: str, dims: Shape, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """LigerRMSNormFunction: keeps x as it came and the reciprocal deviation; backward writes into the gradient it got
    (in_place=True)."""
    weight = parameter(f"{name}.weight", dims, numerics)
    rstd = Tensor(f"{name}.rstd", x.shape[: -len(dims)], DType.FP32)
    out = like(x, out_name)
    cast_sum: Shape = () if weight.dtype is DType.FP32 else (2,)  # the row and the sum of all rows
    unreduced = Tensor(f"∂{weight.name} by multiprocessor", (*cast_sum, *dims), DType.FP32)
    row = Row(
        name="LigerRMSNorm",
        reads=(x, weight),
        writes=(out, rstd),
        gradients=(Gradient(of=x, passes=True, viewed=True), Gradient(of=weight, unreduced=unreduced)),
        saves=(x, weight, rstd),
        elementwise_flops=RMS_NORM_FLOPS,
    )
    return stamped([row, frame(x)], Component.NORM, name), out


def liger_rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, core: AttentionCore
) -> tuple[list[Row], Tensor, Tensor]:
    """LigerRopeFunction: turns q and k where they lie, and in backward their gradients, which it first copies where
    they are not laid out by token."""
    turned_q, turned_k = like(q, "q with positions"), like(k, "k with positions")
    copies_q, copies_k = core.gradients_by_head and not core.one_head, core.gradients_by_head
    gradients = (
        Gradient(of=q, passes=not copies_q, viewed=True),
        Gradient(of=k, passes=not copies_k, viewed=True, output=1),
    )
    rows = [
        Row(
            name="LigerRope",
            reads=(q, k, cos, sin),
            writes=(turned_q, turned_k),
            gradients=gradients,
            saves=(cos, sin),
            in_place=True,
            elementwise_flops=ROTARY_FLOPS,
        ),
        Row(name="LigerRope of k", reads=(), elementwise_flops=ROTARY_FLOPS, elementwise_shape=k.shape),
    ]
    return rows, turned_q, turned_k


def liger_silu_mul(gate: Tensor, up: Tensor, out: Tensor) -> Row:
    """LigerSiLUMulFunction: keeps gate and up, computes the activation again, and writes both gradients over them."""
    return Row(
        name="LigerSiLUMul",
        reads=(gate, up),
        writes=(out,),
        gradients=(Gradient(of=gate), Gradient(of=up)),
        saves=(gate, up),
        overwrites_saved=True,
        elementwise_flops=SILU_MUL_FLOPS,
    )
