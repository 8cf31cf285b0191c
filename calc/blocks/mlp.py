"""The MLPs of layers (transformers 5.23.0)."""

from calc.kinds import Mixture, Mlp, SharedExpert
from calc.ledger import Row, Tensor
from calc.liger import liger_silu_mul
from calc.operators import Numerics, activation, dropped, linear
from calc.primitives import add, frame, like, multiply, part, wider

from .experts import experts, with_gated
from .facts import LayerFacts


def mlp(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """The MLP's rows and its output."""
    if isinstance(facts.kind.mlp, Mixture):
        return _mixture(x, facts.kind.mlp, facts, numerics)
    return MLPS[facts.kind.mlp](x, facts, numerics)


def _mixture(x: Tensor, mixture: Mixture, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """Experts, and the one for all tokens where there is one: before them with a gate or without, or after them."""
    rows, out, held = experts(x, mixture, facts, numerics)
    if mixture.shared_expert is SharedExpert.GATED:
        before, shared = _gated(x, facts, numerics, module="mlp.shared_expert", width="G")
        adding, out = with_gated(x, shared, out, numerics)
        rows = [*before, *rows, *adding]
    elif mixture.shared_expert is SharedExpert.BEFORE:
        before, shared = _gated(x, facts, numerics, module="mlp.shared_experts", width="G")
        total = like(out, "experts and shared expert", dtype=wider(out.dtype, shared.dtype))
        rows = [*before, *rows, add(out, shared, total), frame(shared)]
        out = total
    elif mixture.shared_expert is SharedExpert.ADDED:
        after, shared = _gated(x, facts, numerics, module="mlp.shared_experts", width="G")
        total = like(out, "experts and shared expert", dtype=wider(out.dtype, shared.dtype))
        rows += [*after, add(out, shared, total)]
        out = total
    return [*rows, frame(*held)], out


def _gated(
    x: Tensor, facts: LayerFacts, numerics: Numerics, *, module: str = "mlp", width: str = "F"
) -> tuple[list[Row], Tensor]:
    """LlamaMLP.forward: down(act(gate(x)) · up(x))."""
    bias = facts.kind.mlp_bias
    gate, up, product = (
        Tensor(f"{name} output", ("B", "S", width), numerics.linear) for name in ("gate_proj", "up_proj", "gated")
    )
    act, activated = activation(facts.kind.activation, gate, "activation output", numerics)
    down = Tensor("down_proj output", ("B", "S", "H"), numerics.linear)
    rows = [
        *linear(f"{module}.gate_proj", x, gate, ("H",), (width,), numerics, bias=bias),
        *([] if facts.liger else act),
        *linear(f"{module}.up_proj", x, up, ("H",), (width,), numerics, bias=bias),
        liger_silu_mul(gate, up, product) if facts.liger else multiply(activated, up, product),
        *linear(f"{module}.down_proj", product, down, (width,), ("H",), numerics, bias=bias),
    ]
    return rows, down


def _gated_fused(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """Phi3MLP.forward: gate and up are halves of one projection."""
    both = Tensor("gate_up_proj output", ("B", "S", 2, "F"), numerics.linear)
    gate, up, product = (Tensor(name, ("B", "S", "F"), numerics.linear) for name in ("gate", "up", "gated"))
    act, activated = activation(facts.kind.activation, gate, "activation output", numerics)
    down = Tensor("down_proj output", ("B", "S", "H"), numerics.linear)
    rows = [
        *linear("mlp.gate_up_proj", x, both, ("H",), (2, "F"), numerics),
        part(both, (gate, up)),
        *act,
        multiply(up, activated, product),
        *linear("mlp.down_proj", product, down, ("F",), ("H",), numerics),
        frame(gate, product),
    ]
    return rows, down


def plain_mlp(
    up_name: str, down_name: str, x: Tensor, facts: LayerFacts, numerics: Numerics, *, conv1d: bool = False
) -> tuple[list[Row], Tensor]:
    """down(act(up(x)))."""
    bias = facts.kind.mlp_bias
    up = Tensor(f"{up_name} output", ("B", "S", "F"), numerics.linear)
    act, activated = activation(facts.kind.activation, up, "activation output", numerics)
    down = Tensor(f"{down_name} output", ("B", "S", "H"), numerics.linear)
    rows = [
        *linear(up_name, x, up, ("H",), ("F",), numerics, bias=bias, conv1d=conv1d),
        *act,
        *linear(down_name, activated, down, ("F",), ("H",), numerics, bias=bias, conv1d=conv1d),
    ]
    return rows, down


def _plain_dropped(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """Starcoder2MLP.forward."""
    rows, down = plain_mlp("mlp.c_fc", "mlp.c_proj", x, facts, numerics)
    dropping, result = dropped(down, "mlp output after dropout", on=facts.residual_dropout)
    return [*rows, *dropping], result


MLPS = {Mlp.GATED: _gated, Mlp.GATED_FUSED: _gated_fused, Mlp.PLAIN: _plain_dropped}
