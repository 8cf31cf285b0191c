"""A base of 4-bit or int8 weights (bitsandbytes 0.50.2: functional.py, autograd/_functions.py, backends/cuda/ops.py,
backends/default/ops.py), and LoRA beside it (peft/tuners/lora/bnb.py).

In 4 bits a weight is packed two to a byte (NF4 and FP4 alike), with a scale for 64 elements; with double quantisation
the scales are bytes, with a scale for 256 of them. Each product writes the weight out for a moment, in forward and in
backward; in forward not for four tokens and fewer, which a fused kernel multiplies.
Where autocast casts the model's weights the rest of the base is in fp32 (peft's prepare_model_for_kbit_training), and
bnb_4bit_compute_dtype is autocast's; else everything is in the precision's type.
Left out: the same kernels where bitsandbytes takes them for 5 to 1536 tokens, which depends on GPU and shape.
"""

from collections.abc import Iterator
from dataclasses import replace

from calc.dimensions import Blocks, WrittenOut
from calc.dtype import DType
from calc.ledger import Component, Gradient, Kind, Row, Shape, Tensor
from calc.operators import TOKENS, Numerics, stamped
from calc.primitives import add, cast, copy, dropout, frame, like
from calc.scenario import AdapterKind, SavedOperator

from .facts import OUTPUT_LAYER, AdapterFacts
from .freezing import with_tensors
from .lora import lora_branch
from .modules import LinearModule

WEIGHTS_PER_SCALE = 64
"""quantize_4bit's default block size."""
SCALES_PER_SCALE = 256
FOUR_BIT_VALUES, EIGHT_BIT_VALUES = 16, 256
"""What a code stands for; each weight has tables of its own (get_4bit_type, quantize_blockwise)."""


def is_quantised(module: str) -> bool:
    """transformers leaves the head as it is (quantizers/base.py, get_keys_to_not_convert)."""
    return module != OUTPUT_LAYER


def quantised(module: LinearModule, facts: AdapterFacts, numerics: Numerics) -> list[Row]:
    """The module's rows with its weight quantised."""
    if facts.kind is AdapterKind.LORA_INT8:
        return in_int8(module, numerics)
    return in_4_bits(module, numerics, double_quantisation=facts.double_quantisation)


def in_4_bits(module: LinearModule, numerics: Numerics, *, double_quantisation: bool) -> list[Row]:
    """The module's rows with its weight in 4 bits (Linear4bit.forward, MatMul4Bit): computed in the type of products,
    given in the input's. The input is not kept: its gradient asks for the weight alone."""
    shape, name = module.weight.shape, module.weight.name
    scales: Shape = (Blocks(shape, WEIGHTS_PER_SCALE),)
    packed = replace(module.weight, dtype=DType.FOUR_BIT, trainable=False)
    bias = (replace(module.bias, dtype=numerics.compute),) if module.bias else ()
    written_out = Tensor(f"{name} written out", shape, numerics.compute, Kind.TEMPORARIES)

    def made(made_of: Shape) -> Shape:
        return (WrittenOut(made_of, module.product.m, module.product.k),)

    decoded = [
        Tensor(f"{name} scales {step}", made(scales), DType.FP32, Kind.TEMPORARIES)
        for step in ("decoded", "with their mean")
    ]
    x, out = module.x, module.result
    rows = []
    if x.dtype is not numerics.compute:
        lower, x = x, like(x, f"{x.name} cast for {module.name}", dtype=numerics.compute)
        rows.append(cast(lower, x))
    if out.dtype is not numerics.compute:
        out = like(out, f"{out.name} in {numerics.compute.label}", dtype=numerics.compute)
    rows.append(
        Row(
            name="linear",
            reads=(x, packed, *quant_state(name, scales, double_quantisation=double_quantisation), *bias),
            writes=(out,),
            gradients=(Gradient(of=x, products=(module.product,)),),
            products=(module.product,),
            operator=SavedOperator.ADDMM if bias else SavedOperator.MM,
            temporaries=(*(decoded if double_quantisation else ()), replace(written_out, shape=made(shape))),
            backward_temporaries=(written_out,),
        )
    )
    if out is not module.result:
        rows.append(cast(out, module.result))
    rows.append(frame(module.x))
    return [replace(row, component=module.rows[0].component, module=module.name) for row in rows]


def quant_state(name: str, scales: Shape, *, double_quantisation: bool) -> Iterator[Tensor]:
    """What the QuantState of a weight with so many `scales` holds (quantize_4bit)."""

    def state(part: str, shape: Shape, dtype: DType = DType.FP32) -> Tensor:
        return Tensor(f"{name} {part}", shape, dtype, Kind.BUFFERS)

    yield state("code", (FOUR_BIT_VALUES,))
    if not double_quantisation:
        yield state("scales", scales)
        return
    yield state("scales", scales, DType.UINT8)
    yield state("scales of scales", (Blocks(scales, SCALES_PER_SCALE),))
    yield state("scales' code", (EIGHT_BIT_VALUES,))
    yield state("scales' mean", ())


def in_int8(module: LinearModule, numerics: Numerics) -> list[Row]:
    """The module's rows with its weight in int8 (Linear8bitLt.forward, MatMul8bitLt, has_fp16_weights=False): the input
    in fp16 is quantised row by row, the product is in int32, the result in fp16 and then in the input's type. Backward
    writes the weight out in that type. The node holds the input (ctx.tensors), which backward does not read.

    Left out: columns of outliers (llm_int8_threshold = 6.0), which depend on the data; the row's scales that backward
    makes before the gradient and drops; widths that are no multiple of 4.
    """
    x, out, weight = module.x, module.result, replace(module.weight, dtype=DType.INT8, trainable=False)
    inputs: Shape = (*TOKENS, *module.product.k)
    codes, scales = (
        Tensor(f"{x.name} for {module.name} {part}", shape, dtype, Kind.TEMPORARIES)
        for part, shape, dtype in (("in int8", inputs, DType.INT8), ("scales", TOKENS, DType.FP32))
    )
    in_fp16 = Tensor(f"{x.name} for {module.name} in fp16", inputs, DType.FP16, Kind.TEMPORARIES)
    sizes, outliers = (
        like(in_fp16, f"{in_fp16.name}, sizes"),
        like(in_fp16, f"{in_fp16.name}, outliers", dtype=DType.BOOL),
    )
    product = Tensor(f"{out.name} in int32", out.shape, DType.INT32, Kind.TEMPORARIES)
    scaled = like(out, f"{out.name} in fp16", dtype=DType.FP16)
    row_scales = Tensor(f"{weight.name} scales", module.product.n, DType.FP32, Kind.BUFFERS)
    bias = (replace(module.bias, dtype=x.dtype),) if module.bias else ()
    casts = x.dtype is not DType.FP16
    rows = [
        Row(
            name="int8_vectorwise_quant",
            reads=(x,),
            writes=(codes, scales),
            temporaries=(*((in_fp16,) if casts else ()), sizes, outliers),
        ),
        Row(
            name="linear",
            reads=(codes, scales, weight, row_scales, x, *bias),
            writes=(out,),
            gradients=(Gradient(of=x, products=(module.product,)),),
            holds=(x,),
            products=(module.product,),
            temporaries=(product, *((scaled,) if casts else ())),
            backward_temporaries=(Tensor(f"{weight.name} written out", weight.shape, x.dtype, Kind.TEMPORARIES),),
        ),
        frame(x),
    ]
    return [replace(row, component=module.rows[0].component, module=module.name) for row in rows]


def with_qlora(module: LinearModule, facts: AdapterFacts, numerics: Numerics) -> list[Row]:
    """The quantised module's rows, in 4 bits a copy of what it gives, and the branch; without autocast the branch is
    cast on its way in and out (Linear4bit.forward, Linear8bitLt.forward)."""
    types = numerics.of(facts.dtype)
    of_base = cloned = module.of_base
    rows: list[Row] = []
    if facts.kind is AdapterKind.QLORA:
        cloned = replace(of_base, name=f"{of_base.name}, copied")
        rows.append(copy(of_base, cloned, name="clone"))
    x = branch_input = module.x
    if x.dtype is not facts.dtype and not numerics.autocast:
        branch_input = like(x, f"{x.name} for {module.name}.lora", dtype=facts.dtype)
        rows.append(cast(x, branch_input))
    dropped = branch_input
    if facts.dropout:
        dropped = like(branch_input, f"{module.name}.lora_dropout output")
        rows.append(dropout(branch_input, dropped))
    branch, outer = lora_branch(module, dropped, types)
    rows += branch
    if outer.dtype is not cloned.dtype and not numerics.autocast:
        lower = like(outer, f"{outer.name} in {cloned.dtype.label}", dtype=cloned.dtype)
        rows.append(cast(outer, lower))
        outer = lower
    rows += [add(cloned, outer, module.result), frame(x, branch_input, outer)]
    base = [with_tensors(row, lambda each: of_base if each == module.result else each) for row in module.rows]
    return [*base, *stamped(rows, Component.ADAPTER, module.name)]
