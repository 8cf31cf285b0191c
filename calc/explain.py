"""The founding formulas with a scenario's numbers put in, beside what the ledger says for the same quantity.

The functions, their sources and what they leave out are those of `calc.closed_forms`; here each is written as a line of
letters, and where the ledger differs the difference is named.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import getdoc
from typing import Any

from . import closed_forms
from .estimation import Estimate
from .flops import causal_flops
from .gradients import gradient_of
from .hardware import gpu_named
from .ledger import SYMBOLS, Component, Kind, Symbols, numel
from .optimizers import persistent_gradient
from .plan import ADAMW
from .recipes import RECIPES, State
from .scenario import Adapter, Implementation, Precision, Recompute, num_prefix_tokens
from .sizes import storage_bytes

LETTERS = {
    **{letter: SYMBOLS[letter] for letter in "BSLVHN"},
    "Φ": "parameters.total",
    "r": SYMBOLS["R"],
    "in": "in_features",
    "out": "out_features",
    "d": SYMBOLS["D"],
    "E": SYMBOLS["X"],
    "k": SYMBOLS["Y"],
    "C": "tokens that each expert has a place for",
    "F": SYMBOLS["F"],
    "T": "tokens of prompt and output",
    "K": SYMBOLS["K"],
    "b": "bytes of one element",
    "M": "half-precision elements of one multiprocessor's shared memory",
}
"""What each letter of a statement stands for."""

ACTIVATION_STATEMENTS = {
    Recompute.NONE: "34·B·S·H + 5·B·N·S²",
    Recompute.SELECTIVE: "34·B·S·H",
    Recompute.FULL: "2·B·S·H",
}

ATTENTION_STATEMENTS = {
    "qkv_projection": "6·B·S·H²",
    "scores": "2·B·H·S²",
    "scaling": "B·N·S²",
    "softmax": "3·B·N·S²",
    "values": "2·B·H·S²",
    "output_projection": "2·B·S·H²",
}

DOCUMENTED = {"source": "Source", "leaves_out": "Leaves out", "note": "Note"}
"""Where the docstrings of `calc.closed_forms` say what a Formula's texts are."""

LETTER = re.compile("[A-Za-zΦ]+")

FIRST_LAYER = 1
"""The run of `StepMemory.runs` after the embedding."""

EXCESS_NAMES = {
    Component.EMBEDDING: "other embeddings",
    Component.ATTENTION: "attention",
    Component.MLP: "MLP",
    Component.NORM: "norms",
    Component.HEAD: "a head of its own",
    Component.ADAPTER: "adapter",
}
"""What a component has beyond the closed form's share of it."""

RECIPE_OF = {
    Precision.TEXTBOOK_20: "textbook-20",
    Precision.MEGATRON_18: "megatron-18",
    Precision.ZERO_16: "zero-16",
    Precision.BF16_AUTOCAST: "autocast-16",
    Precision.FP16_AUTOCAST: "autocast-16",
    Precision.BF16_WEIGHTS_AUTOCAST: "half-8",
    Precision.BF16: "half-8",
    Precision.FP16: "half-8",
}

ACTIVATION_DIFFERENCES = {
    Implementation.TRANSFORMERS: "modules of transformers in eager PyTorch keep other tensors; "
    "implementation = megatron is the formula's block",
    Implementation.MEGATRON: "the statistics of two LayerNorms, 16·B·S; without dropout no masks",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Formula:
    """One founding formula for one scenario."""

    key: str
    title: str
    statement: str
    """In letters: `34·B·S·H + 5·B·N·S²`."""
    symbols: Mapping[str, tuple[str, int]]
    """Each letter of the statement: what it stands for, and its value."""
    substituted: str
    """The statement with the values in place of the letters."""
    value: int
    unit: str
    ledger_value: int | None
    """What this project's ledger says; None where the scenario has no such quantity."""
    difference: str
    """Why the ledger says something else; empty where it does not."""
    leaves_out: str
    note: str
    source: str


def formulas(estimate: Estimate) -> tuple[Formula, ...]:
    """Every founding formula with the numbers of `estimate`, its first layer standing for all."""
    sizes = estimate.step.runs[FIRST_LAYER].sizes
    return (
        _parameters(estimate, sizes),
        *_half_precision(estimate),
        *_recipes(estimate),
        *_activations(estimate, sizes),
        *_attention(estimate, sizes),
        *_causal(estimate, sizes),
        *_traffic(estimate, sizes),
        *_kv_cache(estimate, sizes),
        *_experts(estimate),
        _lora(estimate, sizes),
    )


def _parameters(estimate: Estimate, sizes: Symbols) -> Formula:
    return _formula(
        closed_forms.transformer_parameters,
        sizes,
        key="parameters",
        title="Parameters",
        statement="V·H + L·(12·H² + 13·H)",
        value=closed_forms.transformer_parameters(num_layers=sizes["L"], vocab_size=sizes["V"], hidden_size=sizes["H"]),
        unit="parameters",
        ledger_value=estimate.parameters.total,
        difference=_excess_by_component(estimate, sizes),
    )


def _excess_by_component(estimate: Estimate, sizes: Symbols) -> str:
    """The ledger's parameters minus the closed form's, part by part: the parts add up to the difference."""
    num_layers, hidden_size = sizes["L"], sizes["H"]
    closed_form = {
        Component.EMBEDDING: sizes["V"] * hidden_size,
        Component.ATTENTION: num_layers * (4 * hidden_size**2 + 4 * hidden_size),
        Component.MLP: num_layers * (8 * hidden_size**2 + 5 * hidden_size),
        Component.NORM: num_layers * 4 * hidden_size,
    }
    ledger = estimate.parameters.by_component
    excess = {name: count - closed_form.get(Component(name), 0) for name, count in ledger.items()}
    return ", ".join(f"{EXCESS_NAMES[Component(name)]} {count:+,}" for name, count in excess.items() if count)


def _half_precision(estimate: Estimate) -> Iterator[Formula]:
    held = {"weights": estimate.memory.persistent_bytes[Kind.PARAMETERS], "gradients": _gradient_bytes(estimate)}
    sizes = {"Φ": estimate.parameters.total}
    value = closed_forms.half_precision_bytes(num_parameters=sizes["Φ"])
    for name, ledger_value in held.items():
        yield _formula(
            closed_forms.half_precision_bytes,
            sizes,
            key=name,
            title=f"{name.capitalize()} in half precision",
            statement="2·Φ",
            value=value,
            unit="bytes",
            ledger_value=ledger_value,
            difference=_state_difference(estimate),
        )


def _recipes(estimate: Estimate) -> Iterator[Formula]:
    scenario, sizes = estimate.scenario, {"Φ": estimate.parameters.total}
    own = RECIPE_OF.get(scenario.precision) if scenario.optimizer in ADAMW else None
    persistent = estimate.memory.persistent_bytes
    held = persistent[Kind.PARAMETERS] + _gradient_bytes(estimate) + persistent[Kind.OPTIMIZER_STATES]
    for name, recipe in RECIPES.items():
        value = closed_forms.adam_mixed_precision_bytes(num_parameters=sizes["Φ"], recipe=name)
        ledger_value = held if name == own else None
        states = ", ".join(f"{state.replace('_', ' ')} {dtype.itemsize}" for state, dtype in recipe.states.items())
        yield _formula(
            closed_forms.adam_mixed_precision_bytes,
            sizes,
            key=f"adam-{name}",
            title=f"Weights, gradients and Adam's states, {name}",
            statement=f"({' + '.join(str(dtype.itemsize) for dtype in recipe.states.values())})·Φ",
            value=value,
            unit="bytes",
            ledger_value=ledger_value,
            difference=_state_difference(estimate),
            note=f"bytes per parameter: {states}.",
            source=recipe.source,
        )


def _gradient_bytes(estimate: Estimate) -> int:
    """The gradients of all trained parameters."""
    plan = estimate.step.plan
    return sum(
        run.count * storage_bytes(gradient, run.sizes)
        for run in estimate.step.runs
        for parameter in run.part.trained
        for gradient in persistent_gradient(parameter, plan) or (gradient_of(parameter),)
    )


def _state_difference(estimate: Estimate) -> str:
    plan = estimate.step.plan
    gradients = plan.recipe.states[State.GRADIENTS] if plan.recipe else plan.numerics.weights
    trained = "; only the adapter is trained" if plan.adapter else ""
    return (
        f"precision = {plan.precision} has {plan.numerics.weights.label} weights and {gradients.label} gradients; "
        f"each tensor is rounded up to 512 bytes{trained}"
    )


def _activations(estimate: Estimate, sizes: Symbols) -> Iterator[Formula]:
    scenario = estimate.scenario
    per_layer = estimate.memory.saved_activation_bytes_per_layer
    kept = per_layer[0] if isinstance(per_layer, list) else per_layer
    for recompute, statement in ACTIVATION_STATEMENTS.items():
        value = closed_forms.activation_bytes_per_layer(**_layer_sizes(sizes), recompute=recompute)
        ledger_value = kept if recompute is scenario.recompute else None
        yield _formula(
            closed_forms.activation_bytes_per_layer,
            sizes,
            key=f"activations-{recompute}",
            title=f"Activations that one layer keeps, recompute {recompute}",
            statement=statement,
            value=value,
            unit="bytes",
            ledger_value=ledger_value,
            difference=ACTIVATION_DIFFERENCES[scenario.implementation],
        )


def _attention(estimate: Estimate, sizes: Symbols) -> Iterator[Formula]:
    flops = closed_forms.attention_flops(**_layer_sizes(sizes))
    heads = f"{sizes['N']} heads of size {sizes['D']}, {sizes['K']} with keys and values of their own"
    for part, statement in ATTENTION_STATEMENTS.items():
        value, ledger_value = getattr(flops, part), getattr(estimate.flops.attention, part)
        yield _formula(
            closed_forms.attention_flops,
            sizes,
            key=f"attention-{part.replace('_', '-')}",
            title=f"Attention of one layer, forward: {part.replace('_', ' ')}",
            statement=statement,
            value=value,
            unit="FLOP",
            ledger_value=ledger_value,
            difference=heads,
        )


def _causal(estimate: Estimate, sizes: Symbols) -> Iterator[Formula]:
    """Scores and values in the convention that counts what a mask keeps, beside the ledger's of all pairs; none where
    a token attends to those behind it, too."""
    if estimate.architecture.layers[0][0].kind.bidirectional:
        return
    parts, prefix = estimate.flops.attention, num_prefix_tokens(estimate.scenario.adapter)
    yield _formula(
        closed_forms.causal_attention_flops,
        sizes,
        key="causal-attention",
        title="Attention of one layer, forward: scores and values that a causal mask keeps",
        statement="2·B·H·S·(S + 1)",
        value=closed_forms.causal_attention_flops(
            batch_size=sizes["B"], sequence_length=sizes["S"], hidden_size=sizes["H"]
        ),
        unit="FLOP",
        ledger_value=causal_flops(parts.scores + parts.values, sizes["S"], prefix),
        difference=f"{sizes['N']} heads of size {sizes['D']}, and a prefix where there is one",
    )


PAPERS_SHARED_MEMORY_BYTES = 192 * 2**10
"""Of the A100, as the FlashAttention paper counts it (section 2.1)."""


def _traffic(estimate: Estimate, sizes: Symbols) -> Iterator[Formula]:
    """Both ways of attention's core, whichever the scenario runs."""
    gpu = gpu_named(estimate.scenario.gpu) if estimate.scenario.gpu else None
    shared_bytes = gpu.shared_memory_per_sm_bytes if gpu else None
    whose = gpu.name if gpu and shared_bytes else "the FlashAttention paper's A100"
    sram_bytes = shared_bytes or PAPERS_SHARED_MEMORY_BYTES
    layer = {
        "batch_size": sizes["B"],
        "sequence_length": sizes["S"],
        "head_dim": sizes["D"],
        "num_heads": sizes["N"],
    }
    letters = {**sizes, "d": sizes["D"], "M": sram_bytes // closed_forms.HALF_PRECISION_BYTES}
    yield _formula(
        closed_forms.standard_attention_traffic_bytes,
        letters,
        key="traffic-standard",
        title="Memory traffic of one layer's attention, forward: with a matrix of scores",
        statement="2·B·N·(4·S·d + 4·S²)",
        value=closed_forms.standard_attention_traffic_bytes(**layer),
        unit="bytes",
        ledger_value=None,
    )
    yield _formula(
        closed_forms.flash_attention_traffic_bytes,
        letters,
        key="traffic-flash",
        title=f"Memory traffic of one layer's attention, forward: FlashAttention in the shared memory of {whose}",
        statement="2·B·N·(3·S·d + 2·S + ⌈S / ⌈M / (4·d)⌉⌉·(3·S·d + 4·S))",
        value=closed_forms.flash_attention_traffic_bytes(**layer, sram_bytes=sram_bytes),
        unit="bytes",
        ledger_value=None,
    )


def _kv_cache(estimate: Estimate, sizes: Symbols) -> Iterator[Formula]:
    """Of a generation, at its end, where it has no pages."""
    if estimate.generation is None or estimate.engine is not None:
        return
    workload, decoder = estimate.generation.prefill.workload, estimate.architecture.decoder
    tokens = workload.sequence_length + workload.target_length + workload.output_length
    element_bytes = int(estimate.generation.plan.numerics.weights.itemsize)
    letters = {**sizes, "L": decoder.num_layers, "T": tokens, "d": sizes["D"], "b": element_bytes}
    yield _formula(
        closed_forms.kv_cache_bytes,
        letters,
        key="kv-cache",
        title="Key/value cache at the end of the output",
        statement="2·L·B·T·K·d·b",
        value=closed_forms.kv_cache_bytes(
            num_layers=letters["L"],
            batch_size=sizes["B"],
            num_tokens=tokens,
            num_key_value_heads=sizes["K"],
            head_dim=sizes["D"],
            element_bytes=element_bytes,
        ),
        unit="bytes",
        ledger_value=estimate.memory.kv_cache_bytes,
        difference=(
            "layers with a window keep its tokens alone, layers of another kind other tensors, "
            "quantised ones codes and scales"
        ),
    )


def _experts(estimate: Estimate) -> Iterator[Formula]:
    """Of the first layer with experts, where there is one."""
    mixed = next((run.sizes for run in estimate.step.runs if "X" in run.sizes), None)
    if mixed is None:
        return
    letters = {**mixed, "E": mixed["X"], "k": mixed["Y"]}
    num_tokens = mixed["B"] * mixed["S"]
    capacity = closed_forms.expert_capacity(num_tokens=num_tokens, num_experts=mixed["X"], experts_per_token=mixed["Y"])
    yield _formula(
        closed_forms.expert_capacity,
        letters,
        key="expert-capacity",
        title="Tokens of a micro-batch that come to each expert, spread evenly",
        statement="⌈k·B·S / E⌉",
        value=capacity,
        unit="tokens",
        ledger_value=None,
    )
    yield _formula(
        closed_forms.expert_activation_bytes,
        {**letters, "C": capacity},
        key="expert-activations",
        title="Activations that one layer's experts keep at most, with places for so many tokens each",
        statement="2·E·C·(2·H + 4·F)",
        value=closed_forms.expert_activation_bytes(
            num_experts=mixed["X"], capacity=capacity, hidden_size=mixed["H"], expert_size=mixed["F"]
        ),
        unit="bytes",
        ledger_value=None,
    )


def _lora(estimate: Estimate, sizes: Symbols) -> Formula:
    """LoRA on the first adapted module, or, without an adapter, on an H×H matrix at the default rank."""
    matrices = [row for row in estimate.step.runs[FIRST_LAYER].part.section.rows if row.component is Component.ADAPTER]
    factors = [row.products[0] for row in matrices if row.products][:2]
    symbols = {"r": (estimate.scenario.adapter or Adapter()).rank, "in": sizes["H"], "out": sizes["H"]}
    ledger_value = None
    if factors:
        a, b = factors
        symbols |= {"in": numel(a.k, sizes), "out": numel(b.n, sizes)}
        ledger_value = numel((*a.k, *a.n), sizes) + numel((*b.k, *b.n), sizes)
    return _formula(
        closed_forms.lora_parameters,
        symbols,
        key="lora",
        title=f"LoRA on one matrix, {matrices[0].module}" if matrices else "LoRA on one matrix of H × H",
        statement="r·(in + out)",
        value=closed_forms.lora_parameters(in_features=symbols["in"], out_features=symbols["out"], rank=symbols["r"]),
        unit="parameters",
        ledger_value=ledger_value,
    )


def _layer_sizes(sizes: Symbols) -> dict[str, int]:
    return {
        "batch_size": sizes["B"],
        "sequence_length": sizes["S"],
        "hidden_size": sizes["H"],
        "num_heads": sizes["N"],
    }


def _formula(
    function: Callable[..., Any],
    sizes: Symbols,
    *,
    statement: str,
    value: int,
    ledger_value: int | None,
    difference: str = "",
    **facts: str,
) -> Formula:
    """A Formula whose texts come from the statement and from the function's docstring, unless given in `facts`."""
    letters = dict.fromkeys(LETTER.findall(statement))
    texts = {field: _documented(function, label) for field, label in DOCUMENTED.items()}
    return Formula(
        statement=statement,
        symbols={letter: (LETTERS[letter], sizes[letter]) for letter in letters},
        substituted=LETTER.sub(lambda letter: str(sizes[letter[0]]), statement),
        value=value,
        ledger_value=ledger_value,
        difference="" if ledger_value in (None, value) else difference,
        **texts | facts,
    )


def _documented(function: Callable[..., Any], label: str) -> str:
    """What the function's docstring says after `label:`, on one line."""
    found = re.search(rf"^{label}: (.*?)(?=^[A-Z][a-z ]+: |\Z)", getdoc(function) or "", re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""
