"""A mixture's experts one after the other, as rows: the loop that the families copy from each other, transformers'
experts_implementation = "eager" (transformers 5.23.0, models/mixtral: MixtralExperts.forward).

Only experts that get tokens run. What an expert keeps and makes for a moment is as large as its share of the tokens;
a weight's gradient comes as large as those of all experts (select_backward), one expert after the other.

Left out: cub's temporaries where non-zero elements are looked for, a number per block of elements.
"""

from dataclasses import replace

from calc.dtype import DType
from calc.expert_load import tokens_of
from calc.kinds import Mixture, SharedExpert
from calc.ledger import Gradient, Product, Row, Shape, Tensor
from calc.operators import Numerics, activation, autocast_input, parameter
from calc.primitives import cast, frame, like, matmul, multiply, part, view, wider

from .experts import EXPERTS, indexed
from .facts import LayerFacts
from .sparse_mixer import CHOSEN


def looped_experts(
    x: Tensor, weights: Tensor, indices: Tensor, mixture: Mixture, facts: LayerFacts, numerics: Numerics
) -> tuple[list[Row], Tensor]:
    """The rows of all experts that are hit, and the sum that each of them adds to."""
    viewing: list[Row] = []
    if mixture.shared_expert is SharedExpert.ADDED:
        x, by_sequence = like(x, f"{x.name} of the experts"), x
        viewing.append(view(by_sequence, x))
    mask = Tensor("tokens of experts, one-hot", (*CHOSEN, "X+1"), DType.INT64)
    counts = Tensor("tokens per expert", ("X+1",), DType.INT64)
    is_hit = like(counts, "is hit", dtype=DType.BOOL)
    hit = Tensor("experts that are hit", (facts.num_hit, 1), DType.INT64)
    total = like(x, "experts' sum of none")
    rows = [
        *viewing,
        Row(name="zeros_like", reads=(), writes=(total,)),
        Row(name="one_hot", reads=(indices,), writes=(mask,)),
        Row(name="sum", reads=(mask,), writes=(counts,)),
        Row(name="gt", reads=(counts,), writes=(is_hit,)),
        frame(counts),
        Row(name="nonzero", reads=(is_hit,), writes=(hit,)),
    ]
    before: tuple[Tensor, ...] = ()
    for number in range(1, facts.num_hit + 1):
        name = "experts output" if number == facts.num_hit else f"experts' sum of {number}"
        turn, held, added = _turn(number, x, weights, before, facts, numerics)
        out = like(total, name)
        rows += [*turn, _added(total, added, held[0], out), frame(added)]
        total, before = out, held
    return [*rows, frame(mask, hit, *before)], total


def _turn(
    number: int,
    x: Tensor,
    weights: Tensor,
    before: tuple[Tensor, ...],
    facts: LayerFacts,
    numerics: Numerics,
) -> tuple[list[Row], tuple[Tensor, ...], Tensor]:
    """One turn of the loop: its rows, what its variables hold until the next turn sets them again, and what it adds.
    `before` are those of the turn before."""
    own: Shape = (tokens_of(number),)

    def made(name: str, shape: Shape, dtype: DType) -> Tensor:
        return Tensor(f"{name} of expert {number}", (*own, *shape), dtype)

    is_padding = Tensor(f"expert {number} is none", (), DType.BOOL)
    found = made("tokens", (2,), DType.INT64)
    chosen = made("hidden_states", ("H",), x.dtype)
    both = made("gate_up_proj output", (2, "F"), numerics.linear)
    gate, up, product = (made(name, ("F",), numerics.linear) for name in ("gate", "up", "gated"))
    act, activated = activation(facts.kind.activation, gate, f"activation output of expert {number}", numerics)
    down = made("down_proj output", ("H",), numerics.linear)
    weight = made("weight", (1,), weights.dtype)
    weighted = made("weighted output", ("H",), wider(down.dtype, weight.dtype))
    added = like(weighted, f"{weighted.name}, rounded", dtype=x.dtype)
    rounds = weighted.dtype is not x.dtype
    found_before, chosen_before, both_before, weighted_before = before or (None,) * 4
    up_product = Product((), own, (2, "F"), ("H",))
    down_product = Product((), own, ("H",), ("F",))
    rows = [
        Row(name="eq", reads=(), temporaries=(is_padding,)),
        Row(name="nonzero", reads=(), writes=(found,)),
        *_until_here(found_before),
        indexed(x, found, chosen),
        *_until_here(chosen_before),
        *_linear("gate_up_proj", number, chosen, both, up_product, numerics),
        part(both, (gate, up)),
        *_until_here(both_before),
        *act,
        multiply(activated, up, product),
        *_until_here(weighted_before),
        *_linear("down_proj", number, product, down, down_product, numerics),
        replace(indexed(weights, found, weight), gradients=(Gradient(of=weights, viewed=True),)),
        multiply(down, weight, weighted),
        *([cast(weighted, added)] if rounds else []),
    ]
    return rows, (found, chosen, both, weighted), added if rounds else weighted


def _until_here(variable: Tensor | None) -> list[Row]:
    """The variable is set anew."""
    return [frame(variable)] if variable else []


def _linear(name: str, number: int, x: Tensor, out: Tensor, product: Product, numerics: Numerics) -> list[Row]:
    """F.linear with one expert's weight, a part of all; autocast does not keep its cast, as it is no leaf.

    The gradients of all experts' parts meet before the weight's own gets their sum.
    """
    owned = parameter(f"{EXPERTS}.{name}", ("X", *product.n, *product.k), numerics)
    of_all = like(owned, f"{name} of all experts")
    weight = like(owned, f"{name} of expert {number}", shape=owned.shape[1:])
    meeting = [view(owned, of_all)] if number == 1 else []
    choosing = Row(
        name="select",
        reads=(of_all,),
        writes=(weight,),
        gradients=(Gradient(of=of_all),),
        is_view=True,
    )
    casts_weight, weight = autocast_input(weight, numerics, "its product")
    casts_x, lower = autocast_input(x, numerics, "its product")
    return [*meeting, choosing, *casts_weight, *casts_x, matmul("expert", lower, weight, out, product), frame(x)]


def _added(total: Tensor, x: Tensor, index: Tensor, out: Tensor) -> Row:
    """index_add_: in place; the gradient of what is added is that of its tokens, for whose shape it is kept."""
    return Row(
        name="index_add_",
        reads=(total, x, index),
        writes=(out,),
        gradients=(Gradient(of=total, passes=True), Gradient(of=x, needs=(x,))),
        saves=(index,),
        is_view=True,
        elementwise_flops=1,
    )
