"""A mixture's experts one after the other, as rows: the loop that the families copy from each other, transformers'
experts_implementation = "eager" (transformers 5.23.0, models/mixtral: MixtralExperts.forward).

Only experts that get tokens run. What an expert keeps and makes for a moment is as large as its share of the tokens;
a weight's gradient comes as large as those of all experts (select_backward), one expert after the other.

Left out: cub's temporaries where non-zero elements are looked for, a number per block of elements.
"""

from dataclasses import dataclass, replace

from calc.dtype import DType
from calc.expert_load import tokens_of
from calc.kinds import Activation, Expert, Mixture, SharedExpert
from calc.ledger import Gradient, Product, Row, Shape, Tensor
from calc.operators import Numerics, activation, autocast_input, parameter
from calc.primitives import add, cast, frame, like, matmul, multiply, part, view, wider

from .experts import EXPERTS, clamped_gate, indexed
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
    num_classes = "X" if mixture.expert is Expert.CLAMPED else "X+1"
    mask = Tensor("tokens of experts, one-hot", (*CHOSEN, num_classes), DType.INT64)
    counts = Tensor("tokens per expert", (num_classes,), DType.INT64)
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
    variables: dict[str, Tensor] = {}
    for number in range(1, facts.num_hit + 1):
        name = "experts output" if number == facts.num_hit else f"experts' sum of {number}"
        turn = _Turn(number, mixture.expert, facts.kind.activation, variables, numerics)
        computing, added = turn.rows(x, weights)
        out = like(total, name)
        rows += [*computing, _added(total, added, variables["token_idx"], out), frame(added)]
        total = out
    return [*rows, frame(mask, hit, *variables.values())], total


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn of the loop."""

    number: int
    expert: Expert
    activation: Activation
    variables: dict[str, Tensor]
    """What the loop's variables hold, until a turn sets them anew."""
    numerics: Numerics

    def rows(self, x: Tensor, weights: Tensor) -> tuple[list[Row], Tensor]:
        """The rows and what they add to the sum."""
        is_padding = Tensor(f"expert {self.number} is none", (), DType.BOOL)
        found, chosen = self._made("tokens", (2,), DType.INT64), self._made("hidden_states", ("H",), x.dtype)
        weight = self._made("weight", (1,), weights.dtype)
        computing, down = COMPUTED[self.expert](self, chosen)
        weighted = self._made("weighted output", ("H",), wider(down.dtype, weight.dtype))
        added = like(weighted, f"{weighted.name}, rounded", dtype=x.dtype)
        rounds = weighted.dtype is not x.dtype
        rows = [
            Row(name="eq", reads=(), temporaries=(is_padding,)),
            Row(name="nonzero", reads=(), writes=(found,)),
            *self._set("token_idx", found),
            indexed(x, found, chosen),
            *self._set("current_state", chosen),
            *computing,
            replace(indexed(weights, found, weight), gradients=(Gradient(of=weights, viewed=True),)),
            multiply(down, weight, weighted),
            *self._set(RESULT[self.expert], weighted),
            *([cast(weighted, added)] if rounds else []),
        ]
        return rows, added if rounds else weighted

    def gated(self, x: Tensor) -> tuple[list[Row], Tensor]:
        """The way through a gated expert; its last variable gets the weighted output, too."""
        both = self._made("gate_up_proj output", (2, "F"), self.numerics.linear)
        gate, up, product = (self._made(name, ("F",), both.dtype) for name in ("gate", "up", "gated"))
        name = f"activation output of expert {self.number}"
        act, activated = activation(self.activation, gate, name, self.numerics)
        down = self._made("down_proj output", ("H",), self.numerics.linear)
        rows = [
            *self._linear("gate_up_proj", x, both, (2, "F"), ("H",)),
            part(both, (gate, up)),
            *self._set("gate, up", both),
            *act,
            multiply(activated, up, product),
            *self._set(RESULT[Expert.GATED], None),
            *self._linear("down_proj", product, down, ("H",), ("F",)),
            frame(product),
        ]
        return rows, down

    def clamped(self, x: Tensor) -> tuple[list[Row], Tensor]:
        """The way through an expert with biases (GptOssExperts.forward)."""
        up_rows, both = self._with_bias("gate_up_proj", x, ("F", 2), ("H",))
        gating, product = clamped_gate(both, f" of expert {self.number}")
        down_rows, down = self._with_bias("down_proj", product, ("H",), ("F",))
        rows = [
            *up_rows,
            *self._set("gate_up", both),
            *gating,
            *self._set("gated_output", product),
            *down_rows,
            *self._set("out", down),
        ]
        return rows, down

    def _made(self, name: str, shape: Shape, dtype: DType) -> Tensor:
        """A tensor of the expert's tokens."""
        return Tensor(f"{name} of expert {self.number}", (tokens_of(self.number), *shape), dtype)

    def _set(self, variable: str, value: Tensor | None) -> list[Row]:
        """What the variable held goes."""
        before = self.variables.pop(variable, None)
        if value is not None:
            self.variables[variable] = value
        return [frame(before)] if before else []

    def _part(self, name: str, shape: Shape, num_columns: int = 0) -> tuple[list[Row], Tensor]:
        """One expert's part of a parameter. The gradients of all parts meet before the parameter gets their sum."""
        owned = parameter(f"{EXPERTS}.{name}", ("X", *shape), self.numerics, num_columns)
        of_all = like(owned, f"{name} of all experts")
        own = like(owned, f"{name} of expert {self.number}", shape=shape)
        choosing = Row(name="select", reads=(of_all,), writes=(own,), gradients=(Gradient(of=of_all),), is_view=True)
        return [*([view(owned, of_all)] if self.number == 1 else []), choosing], own

    def _linear(
        self, name: str, x: Tensor, out: Tensor, out_dims: Shape, in_dims: Shape, *, turned: bool = True
    ) -> list[Row]:
        """A product with one expert's weight; autocast does not keep its cast, as it is no leaf."""
        choosing, weight = self._part(name, (*out_dims, *in_dims) if turned else (*in_dims, *out_dims))
        casts_weight, weight = autocast_input(weight, self.numerics, "its product")
        casts_x, lower = autocast_input(x, self.numerics, "its product")
        product = Product((), (tokens_of(self.number),), out_dims, in_dims)
        return [*choosing, *casts_weight, *casts_x, matmul("expert", lower, weight, out, product, transposed=turned)]

    def _with_bias(self, name: str, x: Tensor, out_dims: Shape, in_dims: Shape) -> tuple[list[Row], Tensor]:
        """The same, as `x @ weight + bias`."""
        bare = self._made(f"{name} output less bias", out_dims, self.numerics.linear)
        choosing, bias = self._part(f"{name}_bias", out_dims, num_columns=len(out_dims))
        out = self._made(f"{name} output", out_dims, wider(bare.dtype, bias.dtype))
        return [*self._linear(name, x, bare, out_dims, in_dims, turned=False), *choosing, add(bare, bias, out)], out


COMPUTED = {Expert.GATED: _Turn.gated, Expert.CLAMPED: _Turn.clamped}
RESULT = {Expert.GATED: "current_hidden_states", Expert.CLAMPED: "weighted_output"}
"""The variable that holds the weighted output."""


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
