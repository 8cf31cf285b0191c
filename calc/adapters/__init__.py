"""Adapters as a transformation of the ledger: freeze the rows there are, add the adapter's (peft 0.21.2)."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby

from calc.ledger import Row, Section
from calc.operators import Numerics
from calc.scenario import PREFIXED, PROMPTED, QUANTISED, AdapterKind

from .adalora import REGULARISATION, regularisation, with_adalora
from .facts import OUTPUT_LAYER, AdapterFacts, adapter_facts, check_modules
from .freezing import frozen, frozen_section, with_frozen
from .ia3 import with_ia3
from .lora import with_lora
from .modules import LinearModule, is_linear, linear_module
from .prefixes import with_prefix
from .prompts import TEXT_IDS, with_prompts
from .quantised import is_quantised, quantised, with_qlora

__all__ = [
    "OUTPUT_LAYER",
    "REGULARISATION",
    "TEXT_IDS",
    "AdapterFacts",
    "adapt",
    "adapter_facts",
    "check_modules",
    "frozen_section",
    "regularisation",
    "with_frozen",
]


ADAPTERS: dict[AdapterKind, Callable[[LinearModule, AdapterFacts, Numerics], Iterable[Row]]] = {
    AdapterKind.LORA: with_lora,
    AdapterKind.QLORA: with_qlora,
    AdapterKind.ADALORA: with_adalora,
    AdapterKind.IA3: with_ia3,
}


def adapt(section: Section, facts: AdapterFacts, numerics: Numerics) -> Section:
    """`section` with its weights frozen and the adapter on its targets."""
    if facts.kind in PROMPTED:
        return with_prompts(frozen_section(section), facts, numerics)
    if facts.kind in PREFIXED:
        section = frozen_section(section)
        return with_prefix(section, facts, numerics) if section.leaves else section
    rows: list[Row] = []
    for module, group in groupby(frozen(section.rows, facts.saves), key=lambda row: row.module):
        module_rows = list(group)
        linear = any(map(is_linear, module_rows))
        adapted = ADAPTERS[facts.kind]
        if linear and facts.kind in QUANTISED:
            if is_quantised(module):
                module_rows = quantised(linear_module(module_rows), facts, numerics)
            else:
                adapted = with_lora
        if linear and facts.targets(module):
            module_rows = list(adapted(linear_module(module_rows), facts, numerics))
        rows += module_rows
    return replace(section, rows=tuple(rows))
