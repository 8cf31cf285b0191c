"""A mixture of experts in the place of an MLP, as rows (transformers 5.23.0, integrations/moe.py and models/mixtral).

The experts' weights are two tensors for all of them. Tokens are sorted by their expert, and one product takes each row
to its expert's matrix (grouped_mm, the library's default), so that no tensor's size depends on where tokens go.

Left out: the temporaries of sorts, in forward and in the backward of indexing, a few indices per token and expert; the
product's own small workspace.
"""

from dataclasses import replace

from calc.architecture import Mixture
from calc.dtype import DType
from calc.ledger import Component, Gradient, Product, Row, Tensor
from calc.operators import TOKENS, Numerics, activation, linear, parameter, stamped
from calc.primitives import add, cast, frame, like, multiply, part, unary, wider
from calc.scenario import SavedOperator

from .facts import LayerFacts
from .routers import CHOSEN, GATE, router

EXPERTS = "mlp.experts"
"""The module that holds the weights of all experts."""


def experts(
    x: Tensor, mixture: Mixture, facts: LayerFacts, numerics: Numerics
) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """MixtralSparseMoeBlock.forward: the rows, the output, and what the block holds until it returns."""
    routing, held = router(x, mixture, numerics)
    weights, indices = held[:2]
    computing, out = _experts(x, weights, indices, mixture, facts, numerics)
    return [*stamped(routing, Component.MLP, GATE), *stamped(computing, Component.MLP, EXPERTS)], out, held


def with_gated(x: Tensor, shared: Tensor, out: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """The shared expert's output, gated for each token, added to the others' (Qwen2MoeSparseMoeBlock.forward)."""
    gate = Tensor("shared_expert_gate output", (*TOKENS, 1), numerics.linear)
    share = like(gate, "share of the shared expert")
    gated = like(shared, "shared expert, gated", dtype=wider(shared.dtype, share.dtype))
    total = like(out, "experts and shared expert", dtype=wider(out.dtype, gated.dtype))
    rows = [
        *linear("mlp.shared_expert_gate", x, gate, ("H",), (1,), numerics),
        unary("sigmoid", gate, share, saves_output=True),
        multiply(share, shared, gated),
        add(out, gated, total),
        frame(gated, out),
    ]
    return rows, total


def _experts(
    x: Tensor, weights: Tensor, indices: Tensor, mixture: Mixture, facts: LayerFacts, numerics: Numerics
) -> tuple[list[Row], Tensor]:
    """grouped_mm_experts_forward: tokens sorted by expert, both products, the weighted sum."""
    index = like(indices, "", shape=CHOSEN)
    order, by_expert, tokens, back, arange = (
        replace(index, name=name)
        for name in ("order by expert", "experts in order", "tokens in order", "order of tokens", "arange")
    )
    numbers, counts, ends = (
        Tensor(name, shape, DType.INT32)
        for name, shape in (("experts as numbers", CHOSEN), ("tokens per expert", ("X",)), ("ends of experts", ("X",)))
    )
    chosen = Tensor("tokens by expert", (*CHOSEN, "H"), x.dtype)
    chosen_weights = like(weights, "weights by expert")
    computing, result = _products(chosen, ends, facts, numerics)
    weighted, restored = (
        like(result, name, dtype=wider(result.dtype, weights.dtype)) for name in ("weighted by expert", "weighted")
    )
    summed, out = like(restored, "experts' sum", shape=x.shape), like(x, "experts output")
    rounds = summed.dtype is not out.dtype
    rows = [
        Row(name="sort", reads=(indices,), writes=(by_expert, order)),
        Row(name="floor_divide", reads=(order,), writes=(tokens,)),
        _indexed(x, tokens, chosen),
        _indexed(weights, order, chosen_weights),
        Row(name="to", reads=(by_expert,), writes=(numbers,)),
        Row(name="histc", reads=(numbers,), writes=(counts,)),
        Row(name="cumsum", reads=(counts,), writes=(ends,)),
        *computing,
        multiply(result, chosen_weights, weighted),
        Row(name="index_put_", reads=(order,), writes=(back,), temporaries=(arange,)),
        _indexed(weighted, back, restored),
        _summed(restored, summed if rounds else out, mixture),
        *([cast(summed, out)] if rounds else []),
        frame(by_expert, order, numbers, counts, ends, chosen, chosen_weights, result, back, restored, summed),
    ]
    return rows, out


def _indexed(x: Tensor, index: Tensor, out: Tensor) -> Row:
    """`x[index]`: keeps the index; its gradient is zeros that are added to in place (index_backward)."""
    return Row(name="index", reads=(x, index), writes=(out,), gradients=(Gradient(of=x),), saves=(index,))


def _summed(x: Tensor, out: Tensor, mixture: Mixture) -> Row:
    """The sum over a token's experts; the gradient of each is a copy, as the view before asks for its layout."""
    return Row(name="sum", reads=(x,), writes=(out,), gradients=(Gradient(of=x, passes=mixture.one_expert_per_token),))


def _products(x: Tensor, ends: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """Each token through its expert: gate and up, the activation, down. Autocast knows nothing of grouped_mm."""
    both = Tensor("gate_up_proj output", (*CHOSEN, 2, "F"), numerics.weights)
    gate, up, product = (Tensor(name, (*CHOSEN, "F"), numerics.weights) for name in ("gate", "up", "gated"))
    act, activated = activation(facts.kind.activation, gate, "activation output", numerics)
    down = Tensor("down_proj output", (*CHOSEN, "H"), numerics.weights)
    gate_up_weight = parameter(f"{EXPERTS}.gate_up_proj", ("X", 2, "F", "H"), numerics)
    down_weight = parameter(f"{EXPERTS}.down_proj", ("X", "H", "F"), numerics)
    rows = [
        _grouped(x, gate_up_weight, ends, both, Product((), CHOSEN, (2, "F"), ("H",))),
        part(both, (gate, up)),
        *act,
        multiply(activated, up, product),
        frame(both),
        _grouped(product, down_weight, ends, down, Product((), CHOSEN, ("H",), ("F",))),
        frame(product),
    ]
    return rows, down


def _grouped(x: Tensor, weight: Tensor, ends: Tensor, out: Tensor, product: Product) -> Row:
    """_grouped_mm: the gradient of the weights, which were turned, comes first (_grouped_mm_mat2_backward)."""
    return Row(
        name="grouped_mm",
        reads=(x, weight, ends),
        writes=(out,),
        gradients=(
            Gradient(of=weight, needs=(x,), products=(product,), viewed=True),
            Gradient(of=x, needs=(weight,), products=(product,)),
        ),
        saves=(ends,),
        products=(product,),
        operator=SavedOperator.GROUPED_MM,
    )
