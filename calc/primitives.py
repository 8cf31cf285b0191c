"""One row per operation of eager PyTorch: what it allocates, and what its autograd node keeps and makes.

The nodes follow torch 2.13.0's tools/autograd/derivatives.yaml; each function names its formula there.
"""

from dataclasses import replace

from .dtype import DType
from .ledger import Gradient, Product, Row, Shape, Tensor
from .scenario import SavedOperator


def wider(a: DType, b: DType) -> DType:
    """Type promotion among floating types."""
    return a if a.itemsize >= b.itemsize else b


def like(tensor: Tensor, name: str, *, shape: Shape | None = None, dtype: DType | None = None) -> Tensor:
    """A new activation with `tensor`'s shape and type, but for what is given."""
    return Tensor(name, tensor.shape if shape is None else shape, dtype or tensor.dtype)


def cast(x: Tensor, out: Tensor) -> Row:
    """`x.to(dtype)`: keeps nothing; its gradient is cast back."""
    return Row(name="to", reads=(x,), writes=(out,), gradients=(Gradient(of=x),))


def view(x: Tensor, out: Tensor, *, copies_gradient: bool = False) -> Row:
    """A view of `x` (transpose, reshape); its gradient is a view too, unless its layout asks for a copy."""
    gradient = Gradient(of=x, passes=not copies_gradient, viewed=True)
    return Row(name="view", reads=(x,), writes=(out,), gradients=(gradient,), is_view=True)


def renamed(x: Tensor, out: Tensor) -> Row:
    """`x` itself, which other sections know by another name; none but this row reads it."""
    return Row(name="rename", reads=(x,), writes=(out,), gradients=(Gradient(of=x, passes=True),), renames=True)


def part(x: Tensor, outs: tuple[Tensor, ...]) -> Row:
    """`x.split(...)`, `x[..., a:b]`: views; backward makes one new tensor of x's shape."""
    return Row(name="part", reads=(x,), writes=outs, gradients=(Gradient(of=x),), is_view=True)


def cat(parts: tuple[Tensor, ...], out: Tensor) -> Row:
    """`torch.cat`: the parts' gradients are views of the output's, cast where a part has another type."""
    gradients = tuple(Gradient(of=each, passes=each.dtype is out.dtype, viewed=True) for each in parts)
    return Row(name="cat", reads=parts, writes=(out,), gradients=gradients)


def copy(x: Tensor, out: Tensor, *, name: str = "contiguous", copies_gradient: bool = False) -> Row:
    """A copy in another layout; the gradient is handed on, or copied too where its layout asks for it."""
    gradient = Gradient(of=x, passes=not copies_gradient, viewed=True)
    return Row(name=name, reads=(x,), writes=(out,), gradients=(gradient,))


def add(a: Tensor, b: Tensor, out: Tensor, *, name: str = "add", one_sequence: bool = False) -> Row:
    """`a + b`: keeps nothing; the gradient is handed on, cast or summed where type or shape differ.

    With `one_sequence` a factor without the batch dimension has the output's shape.
    """
    return Row(
        name=name,
        reads=(a, b),
        writes=(out,),
        gradients=tuple(
            Gradient(of=x, passes=x.dtype is out.dtype and (x.shape == out.shape or one_sequence))
            for x in dict.fromkeys((a, b))
        ),
        elementwise_flops=1,
    )


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Row:
    """`a * b`: each factor is kept for the other's gradient (mul_tensor_backward).

    A gradient is first made in the output's shape and the promoted type, then summed and cast to its factor's
    (validate_outputs in
    torch/csrc/autograd/engine.cpp).
    """
    return Row(
        name="mul",
        reads=(a, b),
        writes=(out,),
        gradients=(_factor_gradient(a, b, out), _factor_gradient(b, a, out)),
        elementwise_flops=1,
    )


def _factor_gradient(of: Tensor, other: Tensor, out: Tensor) -> Gradient:
    unreduced = like(out, f"∂{of.name} before sum and cast")
    fits = of.shape == out.shape and of.dtype is out.dtype
    return Gradient(of=of, needs=(other,), unreduced=None if fits else unreduced)


def scale(x: Tensor, out: Tensor, *, name: str = "mul") -> Row:
    """`x` times (or plus, where `name` says so) a number: keeps nothing."""
    return Row(name=name, reads=(x,), writes=(out,), gradients=(Gradient(of=x),), elementwise_flops=1)


def subtract(a: Tensor, b: Tensor, out: Tensor) -> Row:
    """`a - b`: keeps nothing; the gradient of b is made in the result's shape and then summed to its own."""
    unreduced = None if b.shape == out.shape else like(out, f"∂{b.name} before its sum")
    gradients = (Gradient(of=a, passes=True), Gradient(of=b, unreduced=unreduced))
    return Row(name="sub", reads=(a, b), writes=(out,), gradients=gradients, elementwise_flops=1)


def soft_cap(x: Tensor, out: Tensor) -> list[Row]:
    """tanh(x / cap)·cap: three operations, of which tanh keeps its result."""
    divided, capped = like(x, f"{x.name} / cap"), like(x, f"tanh({x.name} / cap)")
    return [scale(x, divided, name="div"), unary("tanh", divided, capped, saves_output=True), scale(capped, out)]


def shift(x: Tensor, out: Tensor) -> Row:
    """`x` plus a number: keeps nothing, hands the gradient on."""
    return Row(name="add", reads=(x,), writes=(out,), gradients=(Gradient(of=x, passes=True),), elementwise_flops=1)


def power(x: Tensor, out: Tensor) -> Row:
    """`x.pow(n)`: keeps x; `grad * (n * x.pow(n - 1))` makes two temporaries (pow_backward)."""
    inner = tuple(like(x, f"{part} in pow_backward") for part in ("power", "scaled power"))
    return Row(
        name="pow",
        reads=(x,),
        writes=(out,),
        gradients=(Gradient(of=x),),
        saves=(x,),
        backward_temporaries=inner,
        elementwise_flops=1,
    )


def unary(name: str, x: Tensor, out: Tensor, *, saves_output: bool = False) -> Row:
    """An element-wise function with a backward kernel of its own; keeps its input, or its result."""
    kept = out if saves_output else x
    return Row(name=name, reads=(x,), writes=(out,), gradients=(Gradient(of=x),), saves=(kept,), elementwise_flops=1)


def softmax(x: Tensor, out: Tensor) -> Row:
    """Keeps its result, by which backward multiplies the gradient before its kernel runs (softmax_backward_cuda_out in
    SoftMax.cu)."""
    return replace(log_softmax(x, out), name="softmax", backward_temporaries=(like(out, f"∂{out.name}·{out.name}"),))


def log_softmax(x: Tensor, out: Tensor) -> Row:
    """Keeps its result (_log_softmax_backward_data). FLOPs: exponential, sum and division per element."""
    return Row(
        name="log_softmax", reads=(x,), writes=(out,), gradients=(Gradient(of=x),), saves=(out,), elementwise_flops=3
    )


def dropout(x: Tensor, out: Tensor) -> Row:
    """native_dropout on CUDA: keeps a mask of one byte per element."""
    mask = replace(like(out, f"{out.name}.mask"), dtype=DType.BOOL)
    return Row(
        name="dropout", reads=(x,), writes=(out, mask), gradients=(Gradient(of=x),), saves=(mask,), elementwise_flops=1
    )


def matmul(
    name: str,
    a: Tensor,
    b: Tensor,
    out: Tensor,
    product: Product,
    *,
    bias: Tensor | None = None,
    transposed: bool = True,
) -> Row:
    """`a @ b` (mm, bmm, addmm): each factor is kept for the other's gradient; both gradients are products of the same
    size.

    The factors were reshaped or (`transposed`: nn.Linear's weight) turned before the product, so their gradients
    arrive as views.
    """
    gradients = [
        Gradient(of=a, needs=(b,), products=(product,), viewed=True),
        Gradient(of=b, needs=(a,), products=(product,), viewed=transposed),
    ]
    operator = SavedOperator.BMM if product.batch else SavedOperator.MM
    if bias is not None:
        gradients.append(Gradient(of=bias, viewed=True))
        operator = SavedOperator.ADDMM
    return Row(
        name=name,
        reads=(a, b) if bias is None else (a, b, bias),
        writes=(out,),
        gradients=tuple(gradients),
        products=(product,),
        operator=operator,
    )


def frame(*tensors: Tensor) -> Row:
    """A Python function returns: until here its variables hold `tensors`."""
    return Row(name="return", reads=tensors)
