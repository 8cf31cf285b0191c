"""Convolutions, as the rows of what they run: torch's nn.Conv1d and nn.Conv2d (torch 2.13.0)."""

from dataclasses import replace

from .ledger import Gradient, Product, Row, Shape, Tensor
from .operators import Numerics, autocast_input, autocast_weight, parameter
from .primitives import frame, like


def convolution(
    name: str,
    x: Tensor,
    out: Tensor,
    in_dims: Shape,
    places: Shape,
    numerics: Numerics,
    *,
    copies_gradient: bool = False,
) -> list[Row]:
    """[B, channels, ...] -> `out`, [B, H, ...]: at each of `places` of the output H filters of `in_dims`, their
    channels and widths, and a bias; 2·B·places·H·in_dims FLOPs, and as many for each gradient (conv_flop_count in
    torch/utils/flop_counter.py, which counts what lies in the padding, too).

    convolution_backward keeps input and weight, whichever gradient is wanted (derivatives.yaml). Where the output's
    gradient lies in another order (`copies_gradient`), cudnn_convolution_backward makes a copy of it
    (aten/src/ATen/native/cudnn/ConvShared.cpp). Left out: cuDNN's workspaces, of which no source tells.
    """
    weight, bias = parameter(f"{name}.weight", ("H", *in_dims), numerics), parameter(f"{name}.bias", ("H",), numerics)
    product = Product((), ("B", *places), ("H",), in_dims)
    cast_bias, lower_bias = autocast_weight(bias, numerics)
    cast_weight, lower_weight = autocast_weight(weight, numerics)
    cast_x, lower_x = autocast_input(x, numerics, name)
    row = Row(
        name="convolution",
        reads=(lower_x, lower_weight, lower_bias),
        writes=(out,),
        gradients=(
            Gradient(of=lower_x, products=(product,)),
            Gradient(of=lower_weight, products=(product,)),
            Gradient(of=lower_bias),
        ),
        saves=(lower_x, lower_weight),
        products=(product,),
        backward_temporaries=(like(out, f"∂{out.name} in order"),) if copies_gradient else (),
    )
    return [replace(each, module=name) for each in (*cast_bias, *cast_weight, *cast_x, row, frame(x))]
