"""The layer of Llama 4's text part (transformers 5.23.0, models/llama4)."""

from dataclasses import replace

from calc.attention import AttentionCore
from calc.dtype import DType
from calc.kinds import Mixture, QueryKeyNorm
from calc.ledger import Component, Gradient, Product, Row, Section, Tensor
from calc.lifetimes import NEXT
from calc.norms import length_norm, llama4_rms_norm
from calc.operators import (
    POSITION_IDS,
    TOKENS,
    Numerics,
    activation,
    autocast_input,
    autocast_weight,
    linear,
    parameter,
    stamped,
)
from calc.primitives import add, cast, copy, frame, like, matmul, multiply, part, unary, view
from calc.rotary import Tables, complex_product, rotary_tables
from calc.wirings import Parts

from .attention import attention
from .facts import LayerFacts, hidden_states
from .head import End
from .llama import EMBEDDING_WEIGHT, PROJECTIONS, llama_embeddings
from .positions import rotary_buffers
from .sparse_mixer import CHOSEN

FEED_FORWARD = "feed_forward"


def llama4_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """Llama4TextDecoderLayer."""
    x, output = hidden_states(numerics), hidden_states(numerics, f"{NEXT}hidden_states")
    middle = hidden_states(numerics, "hidden_states after attention")
    norm_1, normed = llama4_rms_norm("input_layernorm", x, "input_layernorm output", ("H",), numerics)
    attending, attended, held = _attention(normed, facts, numerics)
    name = "post_attention_layernorm"
    norm_2, normed_2 = llama4_rms_norm(name, middle, f"{name} output", ("H",), numerics)
    forward = _mixture if isinstance(facts.kind.mlp, Mixture) else _mlp
    mlp, down, logits = forward(normed_2, facts, numerics)
    rows = [
        *norm_1,
        *stamped(attending, Component.ATTENTION, "self_attn"),
        add(x, attended, middle),
        frame(normed),
        *norm_2,
        *stamped(mlp, Component.MLP, FEED_FORWARD),
        frame(normed_2),
        add(middle, down, output),
        frame(POSITION_IDS, x, attended, middle, down, *held, *logits),
    ]
    return Section(name="layer", rows=tuple(rows), input=x, output=output, modules=_modules(facts))


def _modules(facts: LayerFacts) -> tuple[str, ...]:
    mlp = facts.kind.mlp
    inner = mlp.modules if isinstance(mlp, Mixture) else ("gate_proj", "up_proj", "down_proj")
    return (
        *(f"self_attn.{name}" for name in (*PROJECTIONS, "o_proj")),
        *(f"{FEED_FORWARD}.{name}" for name in inner),
        "input_layernorm",
        "post_attention_layernorm",
    )


def _attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """Llama4TextAttention.forward."""
    core, kind = facts.core, facts.kind
    rows: list[Row] = []
    heads: list[Tensor] = []
    for name, shape, one_head in core.projections:
        flat, head = Tensor(f"{name}_proj output", shape, numerics.linear), Tensor(name, shape, numerics.linear)
        rows += linear(f"self_attn.{name}_proj", x, flat, ("H",), shape[2:], numerics, bias=kind.query_key_value_bias)
        copies = core.copies_gradient_by_token(one_head=one_head, cast=numerics.linear is not numerics.weights)
        turned = kind.rotary is not None and name != "v"
        rows.append(view(flat, head, copies_gradient=copies and not turned))
        heads.append(head)
    q, k, v = heads
    if kind.rotary is not None:
        turning, (q, k) = _turned(q, k, rotary_tables(kind.rotary, numerics, sliding=False), core)
        rows += turning
    if kind.query_key_norm is QueryKeyNorm.LENGTH:
        for name, each in (("q", q), ("k", k)):
            norm, normed = length_norm("self_attn.qk_norm", each, f"{name}, normalised", ("D",))
            rows += norm
            q, k = (normed, k) if each is q else (q, normed)
    scales: tuple[Tensor, ...] = ()
    if kind.queries_tempered:
        tempering, q, scales = _tempered(q)
        rows += tempering
    core_rows, out, weights = attention(q, k, v, facts, numerics, positions=None)
    projected = Tensor("o_proj output", ("B", "S", "H"), numerics.compute)
    rows += [
        *core_rows,
        *linear("self_attn.o_proj", out, projected, ("N", "D"), ("H",), numerics, bias=kind.output_bias),
        frame(q, k, v, *scales),
    ]
    return rows, projected, weights


def _turned(q: Tensor, k: Tensor, made: Tables, core: AttentionCore) -> tuple[list[Row], tuple[Tensor, Tensor]]:
    """apply_rotary_emb: both in fp32, seen as complex numbers, times those of the table. The gradient of what is seen
    as real again is copied where it does not lie by token (view_as_real)."""
    wide = [x if x.dtype is DType.FP32 else like(x, f"{x.name} in fp32", dtype=DType.FP32) for x in (q, k)]
    rows = [cast(x, factor) for x, factor in zip((q, k), wide, strict=True) if factor is not x]
    products: list[Tensor] = []
    by_head = core.gradients_by_head and not core.repeats_heads, core.gradients_by_head
    one_head = core.one_head, core.one_key_value_head
    for x, factor, apart, is_one in zip((q, k), wide, by_head, one_head, strict=True):
        product, real = (like(x, f"{x.name} with positions{what}", dtype=DType.FP32) for what in ("", " as real"))
        copies = apart and not is_one
        rows += [complex_product(factor, made[0], product), view(product, real, copies_gradient=copies)]
        products.append(real)
    results = products
    if q.dtype is not DType.FP32:
        results = [like(x, f"{x.name} with positions, rounded") for x in (q, k)]
        rows += [cast(out, rounded) for out, rounded in zip(products, results, strict=True)]
    return [*rows, frame(q, k, *wide, *products)], (results[0], results[1])


def _tempered(q: Tensor) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """`(q * scales).to(...)`, scales being of each position; and what the attention holds."""
    positions, scales = Tensor("positions", ("S",), DType.INT64), Tensor("scales of positions", ("S",), DType.FP32)
    wide, out = like(q, "q · scales", dtype=DType.FP32), like(q, "q, tempered")
    rounds = q.dtype is not DType.FP32
    product = multiply(q, scales, wide if rounds else out)
    rows = [
        Row(name="arange", reads=(), writes=(positions,)),
        Row(name="log1p", reads=(positions,), writes=(scales,), temporaries=(like(scales, "positions / floor_scale"),)),
        replace(product, gradients=product.gradients[:1]),
        *([cast(wide, out)] if rounds else []),
    ]
    return rows, out, (positions, scales)


def _mlp(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    rows, down = _gated(FEED_FORWARD, "F", x, facts, numerics)
    return rows, down, ()


def _gated(module: str, width: str, x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """Llama4TextMLP.forward."""
    gate, up, product = (
        Tensor(f"{module} {name}", ("B", "S", width), numerics.linear) for name in ("gate", "up", "gated")
    )
    act, activated = activation(facts.kind.activation, gate, f"{module} activation output", numerics)
    down = Tensor(f"{module} down_proj output", ("B", "S", "H"), numerics.linear)
    rows = [
        *linear(f"{module}.gate_proj", x, gate, ("H",), (width,), numerics),
        *act,
        *linear(f"{module}.up_proj", x, up, ("H",), (width,), numerics),
        multiply(activated, up, product),
        *linear(f"{module}.down_proj", product, down, (width,), ("H",), numerics),
        frame(product),
    ]
    return rows, down


def _mixture(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """Llama4TextMoe.forward: the rows, the output, and the logits, which it returns, too."""
    given, x = x, like(x, "tokens")
    routing, scores, logits = _router(x, numerics)
    repeated = like(x, "tokens for all experts", shape=("X", *TOKENS, "H"))
    column = like(scores, "scores by expert", shape=("X", *TOKENS, 1))
    routed = like(repeated, "routed_in")
    computing, out = _experts(routed, facts, numerics)
    sharing, shared = _gated(f"{FEED_FORWARD}.shared_expert", "G", x, facts, numerics)
    total, summed = like(shared, "experts and shared expert"), like(out, "experts' sum", shape=shared.shape)
    if numerics.autocast:
        summed = replace(summed, dtype=DType.FP32)
    by_expert = like(out, "experts by token")
    adding = Row(
        name="+=",
        reads=(shared, summed),
        writes=(total,),
        gradients=(Gradient(of=shared, passes=True), Gradient(of=summed, passes=summed.dtype is shared.dtype)),
        is_view=True,
        elementwise_flops=1,
    )
    rows = [
        view(given, x),
        *stamped(routing, Component.MLP, f"{FEED_FORWARD}.router"),
        copy(x, repeated, name="repeat", copies_gradient=True),
        view(scores, column) if facts.core.one_sequence and facts.core.one_token else _turned_round(scores, column),
        multiply(repeated, column, routed),
        *stamped(computing, Component.MLP, f"{FEED_FORWARD}.experts"),
        *stamped(sharing, Component.MLP, f"{FEED_FORWARD}.shared_expert"),
        view(out, by_expert, copies_gradient=not numerics.autocast),
        Row(
            name="sum",
            reads=(by_expert,),
            writes=(summed,),
            gradients=(Gradient(of=by_expert, passes=not numerics.autocast),),
        ),
        adding,
        frame(x, scores, routed, out),
    ]
    return [_of_rows(row, x) for row in rows], total, (logits,)


def _turned_round(x: Tensor, out: Tensor) -> Row:
    """`x.transpose(0, 1).reshape(-1, 1)`."""
    return copy(x, out, name="reshape", copies_gradient=True)


def _of_rows(row: Row, x: Tensor) -> Row:
    """`row`, to which `x` is a matrix: the gradient of it is no view."""
    gradients = tuple(replace(each, viewed=each.viewed and each.of is not x) for each in row.gradients)
    return replace(row, gradients=gradients)


def _router(x: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor, Tensor]:
    """Llama4Router.forward: the rows, each token's scores of all experts, and the logits."""
    logits = Tensor("router logits", (*TOKENS, "X"), numerics.compute)
    best = like(logits, "logits of experts", shape=CHOSEN)
    indices = like(best, "indices of experts", dtype=DType.INT64)
    lowest, filled = like(logits, "-inf for all experts"), like(logits, "logits of the best alone")
    wide = filled if filled.dtype is DType.FP32 else like(filled, "logits of the best in fp32", dtype=DType.FP32)
    shares, scores = like(wide, "sigmoids of the best"), like(logits, "router scores")
    rounds = shares.dtype is not scores.dtype
    if not rounds:
        scores = shares
    rows = [
        *linear(f"{FEED_FORWARD}.router", x, logits, ("H",), ("X",), numerics),
        Row(name="topk", reads=(logits,), writes=(best, indices), gradients=(Gradient(of=logits),), saves=(indices,)),
        Row(name="full_like", reads=(logits,), writes=(lowest,)),
        Row(
            name="scatter_",
            reads=(lowest, indices, best),
            writes=(filled,),
            gradients=(Gradient(of=best),),
            saves=(indices,),
            is_view=True,
        ),
        *([cast(filled, wide)] if wide is not filled else []),
        unary("sigmoid", wide, shares, saves_output=True),
        *([cast(shares, scores)] if rounds else []),
        frame(best, indices, filled),
    ]
    return rows, scores, logits


def _experts(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """Llama4TextExperts.forward: a batched product over the experts, each with all tokens."""
    name = f"{FEED_FORWARD}.experts"
    both = Tensor("gate_up_proj output", ("X", *TOKENS, 2, "F"), numerics.compute)
    gate, up, product = (like(both, each, shape=("X", *TOKENS, "F")) for each in ("gate", "up", "gated"))
    act, activated = activation(facts.kind.activation, gate, "activation output", numerics)
    out = like(both, "down_proj output", shape=("X", *TOKENS, "H"))
    cast_up, up_weight = autocast_weight(parameter(f"{name}.gate_up_proj", ("X", "H", 2, "F"), numerics), numerics)
    cast_down, down_weight = autocast_weight(parameter(f"{name}.down_proj", ("X", "F", "H"), numerics), numerics)
    cast_x, lower = autocast_input(x, numerics, "experts")
    rows = [
        *cast_up,
        *cast_x,
        matmul("bmm", lower, up_weight, both, Product(("X",), TOKENS, (2, "F"), ("H",)), transposed=False),
        part(both, (gate, up)),
        *act,
        multiply(up, activated, product),
        *cast_down,
        matmul("bmm", product, down_weight, out, Product(("X",), TOKENS, ("H",), ("F",)), transposed=False),
        frame(x, both, out),
    ]
    return rows, out


PARTS = Parts(
    embeddings=llama_embeddings,
    layer=llama4_layer,
    end=End(embedding_weight=EMBEDDING_WEIGHT, final_norm="norm"),
    buffers=rotary_buffers,
)
