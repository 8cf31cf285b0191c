"""A base of 4-bit weights (bitsandbytes 0.50.2: functional.py, autograd/_functions.py, backends/cuda/ops.py), and LoRA
beside it (peft/tuners/lora/bnb.py, Linear4bit.forward).

A weight is packed two to a byte (NF4 and FP4 alike), with a scale for 64 elements; with double quantisation the scales
are bytes, with a scale for 256 of them. Each product writes the weight out for a moment, in forward and in backward.
Left out: the fused kernels that bitsandbytes takes on some GPUs for 1536 tokens and fewer, which do not.
"""

from collections.abc import Iterator
from dataclasses import replace

from calc.dimensions import Blocks
from calc.dtype import DType
from calc.ledger import Component, Gradient, Kind, Row, Shape, Tensor
from calc.operators import Numerics, stamped
from calc.primitives import add, cast, copy, dropout, frame, like

from .facts import OUTPUT_LAYER, AdapterFacts
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


def quantised(module: LinearModule, facts: AdapterFacts) -> list[Row]:
    """The module's rows with its weight in 4 bits (MatMul4Bit): its input is not kept, and its gradient asks for the
    weight alone."""
    shape = module.weight.shape
    scales: Shape = (Blocks(shape, WEIGHTS_PER_SCALE),)
    packed = replace(module.weight, dtype=DType.FOUR_BIT, trainable=False)
    held = tuple(_state(module.weight.name, scales, facts))
    dtype = module.result.dtype
    written_out = Tensor(f"{module.weight.name} written out", shape, dtype, Kind.TEMPORARIES)
    decoded = [
        Tensor(f"{module.weight.name} scales{suffix}", scales, DType.FP32, Kind.TEMPORARIES)
        for suffix in (" decoded", " with their mean")
    ]
    row = Row(
        name="linear",
        reads=(module.x, packed, *held, *([module.bias] if module.bias else [])),
        writes=(module.result,),
        gradients=(Gradient(of=module.x, products=(module.product,)),),
        products=(module.product,),
        temporaries=(*(decoded if facts.double_quantisation else ()), written_out),
        backward_temporaries=(written_out,),
        component=module.rows[0].component,
        module=module.name,
    )
    return [row, replace(frame(module.x), component=row.component, module=module.name)]


def _state(name: str, scales: Shape, facts: AdapterFacts) -> Iterator[Tensor]:
    """What a QuantState holds (quantize_4bit)."""

    def state(part: str, shape: Shape, dtype: DType = DType.FP32) -> Tensor:
        return Tensor(f"{name} {part}", shape, dtype, Kind.BUFFERS)

    yield state("code", (FOUR_BIT_VALUES,))
    if not facts.double_quantisation:
        yield state("scales", scales)
        return
    yield state("scales", scales, DType.UINT8)
    yield state("scales of scales", (Blocks(scales, SCALES_PER_SCALE),))
    yield state("scales' code", (EIGHT_BIT_VALUES,))
    yield state("scales' mean", ())


def with_qlora(module: LinearModule, facts: AdapterFacts, numerics: Numerics) -> list[Row]:
    """The quantised module's rows, a copy of what it gives, and the branch, cast before it is added."""
    cloned = replace(module.of_base, name=f"{module.result.name} of the base, copied")
    rows = [copy(module.of_base, cloned, name="clone")]
    x = module.x
    branch_input = x
    if x.dtype is not facts.dtype:
        branch_input = like(x, f"{x.name} for {module.name}.lora", dtype=facts.dtype)
        rows.append(cast(x, branch_input))
    dropped = branch_input
    if facts.dropout:
        dropped = like(branch_input, f"{module.name}.lora_dropout output")
        rows.append(dropout(branch_input, dropped))
    branch, outer = lora_branch(module, dropped, Numerics(weights=facts.dtype, compute=facts.dtype))
    rows += branch
    if outer.dtype is not cloned.dtype:
        lower = like(outer, f"{outer.name} in {cloned.dtype.label}", dtype=cloned.dtype)
        rows.append(cast(outer, lower))
        outer = lower
    rows += [add(cloned, outer, module.result), frame(x, branch_input, outer)]
    return [*module.writing(module.of_base), *stamped(rows, Component.ADAPTER, module.name)]
