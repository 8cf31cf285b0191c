"""A base of 4-bit weights (bitsandbytes 0.50.2: functional.py, autograd/_functions.py, backends/cuda/ops.py), and LoRA
beside it (peft/tuners/lora/bnb.py, Linear4bit.forward).

A weight is packed two to a byte (NF4 and FP4 alike), with a scale for 64 elements; with double quantisation the scales
are bytes, with a scale for 256 of them. Each product writes the weight out for a moment, in forward and in backward.
Under autocast the rest of the base is in fp32 (peft's prepare_model_for_kbit_training), and bnb_4bit_compute_dtype is
autocast's; else everything is in the precision's type.
Left out: the fused kernels that bitsandbytes takes on some GPUs for 1536 tokens and fewer, which do not.
"""

from collections.abc import Iterator
from dataclasses import replace

from calc.dimensions import Blocks
from calc.dtype import DType
from calc.ledger import Component, Gradient, Kind, Row, Shape, Tensor
from calc.operators import Numerics, stamped
from calc.primitives import add, cast, copy, dropout, frame, like
from calc.scenario import SavedOperator

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
    """The module's rows with its weight in 4 bits (Linear4bit.forward, MatMul4Bit): computed in the type of products,
    given in the input's. The input is not kept: its gradient asks for the weight alone."""
    shape, name = module.weight.shape, module.weight.name
    scales: Shape = (Blocks(shape, WEIGHTS_PER_SCALE),)
    packed = replace(module.weight, dtype=DType.FOUR_BIT, trainable=False)
    bias = (replace(module.bias, dtype=numerics.compute),) if module.bias else ()
    written_out = Tensor(f"{name} written out", shape, numerics.compute, Kind.TEMPORARIES)
    decoded = [
        Tensor(f"{name} scales {step}", scales, DType.FP32, Kind.TEMPORARIES) for step in ("decoded", "with their mean")
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
            reads=(x, packed, *quant_state(name, scales, double_quantisation=facts.double_quantisation), *bias),
            writes=(out,),
            gradients=(Gradient(of=x, products=(module.product,)),),
            products=(module.product,),
            operator=SavedOperator.ADDMM if bias else SavedOperator.MM,
            temporaries=(*(decoded if facts.double_quantisation else ()), written_out),
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


def with_qlora(module: LinearModule, facts: AdapterFacts, numerics: Numerics) -> list[Row]:
    """The quantised module's rows, a copy of what it gives, and the branch; without autocast the branch is cast on its
    way in and out."""
    types = Numerics(weights=facts.dtype, compute=numerics.compute if numerics.autocast else facts.dtype)
    of_base = module.of_base
    cloned = replace(of_base, name=f"{of_base.name}, copied")
    rows = [copy(of_base, cloned, name="clone")]
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
