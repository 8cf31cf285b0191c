"""AdaLoRA on one linear module, and the regularisation of its factors (peft/tuners/adalora: layer.py, model.py).

Left out: update_and_allocate, which the caller runs after backward; it keeps three more tensors for each trained one.
"""

from collections.abc import Iterator
from dataclasses import replace

from calc.dtype import DType
from calc.ledger import Component, Gradient, Product, Row, Section, Shape, Tensor
from calc.lifetimes import NEXT
from calc.operators import Numerics, autocast_input, autocast_weight, parameter, stamped
from calc.primitives import add, cast, dropout, frame, like, matmul, multiply, scale, wider

from .facts import REGULARISATION, AdapterFacts
from .lora import RANK
from .modules import LinearModule

RIGHT, LEFT = ".lora_A", ".lora_B"
"""The factors' names: singular vectors on the input's and on the output's side."""


def with_adalora(adapted: LinearModule, facts: AdapterFacts, numerics: Numerics) -> list[Row]:
    """The module's rows, then x·(A·E)ᵀ·Bᵀ·scaling/rank added to its output in place (SVDLinear.forward).

    The rank is a number of its own, which is trained where the base is in half precision: PEFT 0.21.2 then casts it as
    it casts the factors, and what it makes of it requires a gradient (_move_adapter_to_device_of_base_layer).
    """
    name, x = adapted.name, adapted.x
    types = numerics.of(facts.dtype)
    rank = replace(parameter(f"{name}.ranknum", (1,), types), trainable=numerics.weights is not DType.FP32)
    divisor = like(rank, f"{name}.ranknum + ε")
    rows = [scale(rank, divisor, name="add")]
    branch_input = x
    if x.dtype is not facts.dtype:
        branch_input = like(x, f"{x.name} for {name}.lora", dtype=facts.dtype)
        rows.append(cast(x, branch_input))
    dropped = branch_input
    if facts.dropout:
        dropped = like(branch_input, f"{name}.lora_dropout output")
        rows.append(dropout(branch_input, dropped))
    branch, scaled = _branch(adapted, dropped, types)
    divided = like(scaled, f"{name}.lora output", dtype=wider(scaled.dtype, divisor.dtype))
    rows += [*branch, _divided(scaled, divisor, divided, trained=rank.trainable), _added(adapted, divided)]
    rows.append(frame(x, branch_input, divisor))
    return [*adapted.writing(adapted.of_base), *stamped(rows, Component.ADAPTER, name)]


def _branch(adapted: LinearModule, x: Tensor, types: Numerics) -> tuple[list[Row], Tensor]:
    """x·(A·E)ᵀ·Bᵀ·scaling."""
    name, inside, outside = adapted.name, adapted.product.k, adapted.product.n
    right = parameter(f"{name}{RIGHT}", (*RANK, *inside), types, num_columns=len(inside))
    left = parameter(f"{name}{LEFT}", (*outside, *RANK), types, num_columns=len(RANK))
    values = parameter(f"{name}.lora_E", (*RANK, 1), types, num_columns=1)
    weighted = like(right, f"{name}.A·E")
    inner = Tensor(f"{name}.lora_A output", (*adapted.product.m, *RANK), types.compute)
    outer, scaled = (
        Tensor(f"{name}.lora_B {part}", adapted.result.shape, types.compute) for part in ("output", "output scaled")
    )
    casts_x, low_x = autocast_input(x, types, f"{name}.lora_A")
    # Neither A·E nor Bᵀ is a weight itself: autocast caches no cast of them.
    casts_weighted, low_weighted = autocast_input(weighted, types, f"{name}.lora_A")
    casts_left, low_left = autocast_input(left, types, f"{name}.lora_B")
    rows = [
        multiply(right, values, weighted),
        *casts_weighted,
        *casts_x,
        matmul("linear", low_x, low_weighted, inner, Product((), adapted.product.m, RANK, inside)),
        frame(x, weighted),
        *casts_left,
        matmul("linear", inner, low_left, outer, Product((), adapted.product.m, outside, RANK)),
        scale(outer, scaled),
    ]
    return rows, scaled


def _divided(x: Tensor, divisor: Tensor, out: Tensor, *, trained: bool) -> Row:
    """`x / divisor`: the divisor's gradient is -∂·((x / divisor) / divisor), summed (div_tensor_other_grad), if it is
    `trained`. Of its three factors two live beside the gradients: x's is made after they are gone."""
    factors = tuple(like(out, f"{out.name} in div_backward, {number}") for number in (1, 2))
    return Row(
        name="div",
        reads=(x, divisor),
        writes=(out,),
        gradients=(
            Gradient(of=x, unreduced=None if x.dtype is out.dtype else like(out, f"∂{x.name} before its cast")),
            Gradient(of=divisor, needs=(x,), unreduced=like(out, f"∂{divisor.name} before sum and cast")),
        ),
        saves=(divisor,),
        backward_temporaries=factors if trained else (),
        elementwise_flops=1,
    )


def _added(adapted: LinearModule, branch: Tensor) -> Row:
    """`result += branch`. With a bias the module's output is a view, whose gradient then comes by way of a copy of all
    and a copy of the view (CopySlices in torch/csrc/autograd/functions/tensor.cpp)."""
    of_base, result = adapted.of_base, adapted.result
    is_view = adapted.bias is not None
    passes = branch.dtype is result.dtype
    cut = None if passes else like(result, f"∂{result.name}, copied")
    return Row(
        name="add_",
        reads=(of_base, branch),
        writes=(result,),
        gradients=(
            Gradient(of=of_base, passes=not is_view),
            Gradient(of=branch, passes=passes and not is_view, unreduced=cut if is_view else None),
        ),
        is_view=True,
        elementwise_flops=1,
    )


def regularisation(section: Section, numerics: Numerics) -> Section | None:
    """What AdaLoraModel.forward adds to the loss for the factors of `section`: ‖A·Aᵀ - 1‖ and ‖Bᵀ·B - 1‖; None where
    there are none."""
    factors = [tensor for tensor, _ in section.parameters() if tensor.trainable and tensor.name.endswith((RIGHT, LEFT))]
    if not factors:
        return None
    rows: list[Row] = []
    total = REGULARISATION
    for number, factor in enumerate(factors, 1):
        last = number == len(factors)
        grown = replace(total, name=f"{NEXT}{REGULARISATION.name}" if last else f"{REGULARISATION.name} {number}")
        rows += _norm_of(factor, total, grown, numerics)
        total = grown
    return Section(
        name="regularisation",
        rows=tuple(stamped(rows, Component.LOSS, "")),
        input=REGULARISATION,
        output=total,
    )


def _norm_of(factor: Tensor, total: Tensor, grown: Tensor, numerics: Numerics) -> Iterator[Row]:
    """The Frobenius norm of a factor's products with itself, less the identity; added in place."""
    name = factor.name
    types = numerics.of(factor.dtype)
    inside: Shape = tuple(side for side in factor.shape if side not in RANK)
    square = Product((), RANK, RANK, inside)
    covariance, identity, difference = (
        Tensor(f"{name} {part}", (*RANK, *RANK), types.compute) for part in ("covariance", "identity", "difference")
    )
    if factor.dtype is not types.compute:
        cast_factor, low = autocast_weight(factor, types)
        turned = like(factor, f"{name} transposed, cast", dtype=types.compute)
        yield from (*cast_factor, cast(factor, turned))
        yield matmul("mm", low, turned, covariance, square)
    else:
        twice = (Gradient(of=factor, products=(square,)), Gradient(of=factor, products=(square,)))
        yield Row(name="mm", reads=(factor,), writes=(covariance,), gradients=twice, products=(square,))
    yield Row(name="eye", reads=(), writes=(identity,))
    yield add(covariance, identity, difference, name="sub")
    yield frame(covariance, identity)
    # Autocast asks linalg_vector_norm for fp32, whose kernel reads half precision as it is (make_reduction).
    norm = Tensor(f"{name} norm", (), DType.FP32 if numerics.autocast else difference.dtype)
    is_zero = Tensor(f"{name} norm is 0", (), DType.BOOL)
    yield Row(
        name="norm",
        reads=(difference,),
        writes=(norm,),
        gradients=(Gradient(of=difference),),
        saves=(difference, norm),
        backward_temporaries=(like(difference, f"{name} difference / norm"), is_zero),
        elementwise_flops=1,
    )
    gradients = tuple(Gradient(of=each, passes=each.dtype is grown.dtype) for each in (total, norm))
    yield Row(name="add_", reads=(total, norm), writes=(grown,), gradients=gradients, is_view=True)
