"""Adapters as a transformation of the ledger: freeze the rows there are, add the adapter's (peft 0.21.2)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from .architecture import Wiring
from .dtype import DType
from .errors import ConfigError
from .ledger import Component, Kind, Row, Section, Tensor
from .operators import Numerics, linear, stamped
from .primitives import add, cast, dropout, frame, like, scale, wider
from .scenario import Adapter, AdapterDType

DEFAULT_TARGETS = {
    Wiring.GPT2: ("c_attn",),
    Wiring.MEGATRON: ("query_key_value",),
    Wiring.LLAMA: ("q_proj", "v_proj"),
}
"""peft/utils/constants.py, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """All of an adapter that decides which rows there are."""

    target_modules: tuple[str, ...]
    dropout: bool
    dtype: DType


def adapter_facts(adapter: Adapter, wiring: Wiring, numerics: Numerics) -> AdapterFacts:
    """The facts of `adapter` on a model of `wiring`."""
    return AdapterFacts(
        target_modules=adapter.target_modules or DEFAULT_TARGETS[wiring],
        dropout=adapter.dropout > 0,
        dtype=DType.FP32 if adapter.dtype is AdapterDType.FP32 else numerics.weights,
    )


def check_targets(sections: Iterable[Section], facts: AdapterFacts) -> None:
    """Refuse a target that names no linear module of `sections`."""
    modules = {row.module for section in sections for row in section.rows if _is_linear(row)}
    for target in facts.target_modules:
        if not any(_matches(module, target) for module in modules):
            known = ", ".join(sorted({module.split(".")[-1] for module in modules}))
            raise ConfigError(
                "adapter.target_modules", target, f"names no linear module of this model; there are {known}"
            )


def adapt(section: Section, facts: AdapterFacts, numerics: Numerics) -> Section:
    """`section` with its weights frozen and LoRA on the targets (peft/tuners/lora/layer.py, Linear.forward)."""
    rows: list[Row] = []
    for module, group in groupby(_frozen(section.rows), key=lambda row: row.module):
        module_rows = list(group)
        if any(_matches(module, target) for target in facts.target_modules):
            module_rows = list(_with_lora(module_rows, facts, numerics))
        rows += module_rows
    return replace(section, rows=tuple(rows))


def _is_linear(row: Row) -> bool:
    return row.name == "linear"


def _matches(module: str, target: str) -> bool:
    """PEFT's rule: the module's own name or the end of its path."""
    return module == target or module.endswith(f".{target}")


def _frozen(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows with no weight trained. Autocast caches only casts of trained weights, so theirs are ordinary
    tensors."""
    for row in rows:
        yield replace(
            row,
            reads=tuple(map(_frozen_tensor, row.reads)),
            writes=tuple(map(_frozen_tensor, row.writes)),
            gradients=tuple(
                replace(gradient, of=_frozen_tensor(gradient.of), needs=tuple(map(_frozen_tensor, gradient.needs)))
                for gradient in row.gradients
            ),
        )


def _frozen_tensor(tensor: Tensor) -> Tensor:
    if tensor.kind is Kind.PARAMETERS:
        return replace(tensor, trainable=False)
    if tensor.kind is Kind.AUTOCAST_WEIGHTS:
        return replace(tensor, kind=Kind.ACTIVATIONS)
    return tensor


def _with_lora(rows: list[Row], facts: AdapterFacts, numerics: Numerics) -> Iterator[Row]:
    """The rows of one linear module, then result + B(A(dropout(x)))·scaling."""
    base = next(row for row in rows if _is_linear(row))
    result = base.writes[0]
    of_base = replace(result, name=f"{result.name} of the base")
    yield from (replace(row, writes=(of_base,)) if row is base else row for row in rows)
    x = next((row.reads[0] for row in rows if base.reads[0] in row.writes), base.reads[0])
    yield from stamped(_lora(x, of_base, result, base, facts, numerics), Component.ADAPTER, base.module)


def _lora(
    x: Tensor, of_base: Tensor, result: Tensor, base: Row, facts: AdapterFacts, numerics: Numerics
) -> Iterator[Row]:
    compute = numerics.compute if numerics.autocast else facts.dtype
    types = Numerics(weights=facts.dtype, compute=compute)
    product = base.products[0]
    branch_input = x
    if x.dtype is not facts.dtype:
        branch_input = like(x, f"{x.name} for {base.module}.lora", dtype=facts.dtype)
        yield cast(x, branch_input)
    dropped = branch_input
    if facts.dropout:
        dropped = like(branch_input, f"{base.module}.lora_dropout output")
        yield dropout(branch_input, dropped)
    inner = Tensor(f"{base.module}.lora_A output", ("B", "S", "R"), compute)
    outer, scaled = (
        Tensor(f"{base.module}.lora_B {name}", result.shape, compute) for name in ("output", "output scaled")
    )
    yield from linear(f"{base.module}.lora_A", dropped, inner, product.k, ("R",), types)
    yield from linear(f"{base.module}.lora_B", inner, outer, ("R",), product.n, types)
    yield scale(outer, scaled)
    total = like(result, f"{result.name} before its cast", dtype=wider(result.dtype, compute))
    if total.dtype is result.dtype:
        total = result
    yield add(of_base, scaled, total)
    if total is not result:
        yield cast(total, result)
    yield frame(x, branch_input)
