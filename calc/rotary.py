"""Rotary positions as rows: the model's tables, and how layers turn queries and keys by them (transformers 5.23.0).

`apply_rotary_pos_emb` of models/llama and of its likes in olmo2, cohere, glm, phi3, stablelm and ernie4_5.
"""

from .dtype import DType
from .kinds import Pairs, PositionTables, Rotary
from .ledger import Gradient, Row, Shape, Tensor
from .operators import POSITION_IDS, Numerics
from .primitives import add, cast, cat, copy, frame, like, multiply, part, scale, subtract, wider

Pair = tuple[Tensor, Tensor]
"""One of q and one of k, or two halves."""
Tables = tuple[Tensor, ...]
"""cos and sin, or one of complex numbers."""


def turned_dim(rotary: Rotary) -> tuple[str, str]:
    """The elements of a head that are turned, and half of them."""
    return ("Q", "Q/2") if rotary.partial else ("D", "D/2")


def rotary_tables(rotary: Rotary, numerics: Numerics, *, sliding: bool) -> Tables:
    """What turns each position: one set of tables for the whole model, or for all layers of a kind."""
    if rotary.pairs is Pairs.COMPLEX:
        return (Tensor("rotary.freqs_cis", ("S", turned_dim(rotary)[1], *COMPLEX), DType.FP32),)
    shape = ("S", turned_dim(rotary)[0])
    if rotary.pairs is Pairs.SPLIT_HALVES:
        shape = ("S", turned_dim(rotary)[1])
    dtype = DType.FP32 if rotary.tables is PositionTables.FP32 else numerics.weights
    of = ".sliding" if sliding and rotary.tables is PositionTables.BY_WINDOW else ""
    return Tensor(f"rotary{of}.cos", shape, dtype), Tensor(f"rotary{of}.sin", shape, dtype)


COMPLEX: Shape = (2,)
"""The two fp32 numbers of a complex one."""


def tables_row(made: Tables) -> Row:
    """LlamaRotaryEmbedding.forward; DeepseekV2RotaryEmbedding.forward of one table."""
    if len(made) == 1:
        angles, unscaled = like(made[0], "rotary.angles", shape=made[0].shape[:-1]), like(made[0], "rotary.unscaled")
        return Row(name="rotary_emb", reads=(POSITION_IDS,), writes=made, temporaries=(angles, unscaled))
    in_fp32 = ("angles",) if made[0].dtype is DType.FP32 else ("angles", "cos in fp32", "sin in fp32")
    temporaries = tuple(Tensor(f"rotary.{name}", made[0].shape, DType.FP32) for name in in_fp32)
    return Row(name="rotary_emb", reads=(POSITION_IDS,), writes=made, temporaries=temporaries)


def turned(q: Tensor, k: Tensor, made: Tables, rotary: Rotary) -> tuple[list[Row], Pair, tuple[Tensor, ...]]:
    """apply_rotary_pos_emb: the rows, q and k with their positions, and what else the caller goes on holding."""
    rows: list[Row] = []
    given = q, k
    if rotary.inputs_in_fp32 and q.dtype is not DType.FP32:
        q, k = (like(x, f"{x.name} in fp32", dtype=DType.FP32) for x in given)
        rows += [cast(x, wide) for x, wide in zip(given, (q, k), strict=True)]
    if rotary.repeats_tables:
        of_pairs = tuple(like(table, f"{table.name} of pairs") for table in made)
        rows += [copy(table, wide, name="repeat_interleave") for table, wide in zip(made, of_pairs, strict=True)]
        made = of_pairs[0], of_pairs[1]
    if rotary.pairs is Pairs.SPLIT_HALVES:
        turning, results = _split_halves_turned(q, k, made)
        fronts = ()
    elif rotary.partial:
        turning, results, fronts = _partly_turned(q, k, made, rotary)
    else:
        rows_q, turned_q = _turned("q", q, made, rotary)
        rows_k, turned_k = _turned("k", k, made, rotary)
        turning, results, fronts = [*rows_q, *rows_k], (turned_q, turned_k), ()
    rows_back, rounded = _rounded(results, given) if rotary.rounds else ([], results)
    rows += [*turning, *rows_back, frame(q, k, *results, *made)]
    return rows, rounded, (*given, *fronts) if rotary.parted_outside else ()


def turned_fronts(q: Tensor, k: Tensor, made: Tables, rotary: Rotary) -> tuple[list[Row], Pair]:
    """Positions for what an attention has parted off itself, k for one head or all: the rows, and both turned."""
    if rotary.pairs is Pairs.COMPLEX:
        return complex_turned(q, k, made)
    if rotary.pairs is Pairs.NEIGHBOURS:
        slices, halves = [], []
        for name, x in (("q", q), ("k", k)):
            shape = (*x.shape[:-1], f"{x.shape[-1]}/2")
            even, odd = (like(x, f"{name}.{which} elements", shape=shape) for which in ("even", "odd"))
            slices += [part(x, (even,)), part(x, (odd,))]
            halves.append((even, odd))
        rows_q, out_q = _halves_turned("q", q, halves[0], made)
        rows_k, out_k = _halves_turned("k", k, halves[1], made)
        return [*slices, *rows_q, *rows_k], (out_q, out_k)
    rows_q, out_q = _turned("q", q, made, rotary)
    rows_k, out_k = _turned("k", k, made, rotary)
    return [*rows_q, *rows_k], (out_q, out_k)


def complex_turned(q: Tensor, k: Tensor, made: Tables) -> tuple[list[Row], Pair]:
    """apply_rotary_emb of models/deepseek_v2: both in fp32, seen as complex numbers, times those of the table."""
    wide = [x if x.dtype is DType.FP32 else like(x, f"{x.name} in fp32", dtype=DType.FP32) for x in (q, k)]
    rows = [cast(x, factor) for x, factor in zip((q, k), wide, strict=True) if factor is not x]
    turned: list[Tensor] = []
    for name, x, factor in (("q", q, wide[0]), ("k", k, wide[1])):
        product = like(factor, f"{name} with positions")
        rows.append(complex_product(factor, made[0], product))
        if factor is not x:
            rounded = like(x, f"{name} with positions, rounded")
            rows.append(cast(product, rounded))
            product = rounded
        turned.append(product)
    return [*rows, frame(*wide)], (turned[0], turned[1])


def complex_product(x: Tensor, table: Tensor, out: Tensor) -> Row:
    """The gradient is a product with the conjugate, which is written out."""
    return Row(
        name="mul",
        reads=(x, table),
        writes=(out,),
        gradients=(Gradient(of=x, needs=(table,)),),
        backward_temporaries=(like(table, "conjugate"),),
        elementwise_flops=COMPLEX_FLOPS,
    )


COMPLEX_FLOPS = 3
"""Of a complex product four multiplications and two additions, for two elements."""


def _halves_turned(name: str, x: Tensor, halves: Pair, made: Tables) -> tuple[list[Row], Tensor]:
    """a·cos - b·sin, then b·cos + a·sin, a and b being even and odd elements (apply_rotary_pos_emb_interleave of
    models/deepseek_v3) or halves."""
    (a, b), (cos, sin) = halves, made
    dtype = wider(x.dtype, cos.dtype)
    a_cos, b_sin, first, b_cos, a_sin, second = (
        like(a, f"{name}.{what}", dtype=dtype)
        for what in ("a·cos", "b·sin", "a with positions", "b·cos", "a·sin", "b with positions")
    )
    out = like(x, f"{name} with positions", dtype=dtype)
    rows = [
        multiply(a, cos, a_cos),
        multiply(b, sin, b_sin),
        subtract(a_cos, b_sin, first),
        multiply(b, cos, b_cos),
        multiply(a, sin, a_sin),
        add(b_cos, a_sin, second),
        cat((first, second), out),
    ]
    return rows, out


def _split_halves_turned(q: Tensor, k: Tensor, made: Tables) -> tuple[list[Row], Pair]:
    """apply_rotary_pos_emb of models/gpt_oss."""
    rows: list[Row] = []
    results: list[Tensor] = []
    for name, x in (("q", q), ("k", k)):
        shape = (*x.shape[:-1], f"{x.shape[-1]}/2")
        first, second = (like(x, f"{name}.{which} half", shape=shape) for which in ("first", "second"))
        turning, out = _halves_turned(name, x, (first, second), made)
        rows += [part(x, (first, second)), *turning]
        results.append(out)
    return rows, (results[0], results[1])


def _partly_turned(q: Tensor, k: Tensor, made: Tables, rotary: Rotary) -> tuple[list[Row], Pair, Pair]:
    """The first elements of each head turned, the others behind them: the rows, the results, what was turned."""
    slices: list[Row] = []
    turning: list[list[Row]] = []
    joining: list[list[Row]] = []
    results: list[Tensor] = []
    fronts: list[Tensor] = []
    for name, x in (("q", q), ("k", k)):
        front, rest = (like(x, f"{name} {what}", shape=(*x.shape[:-1], dim)) for what, dim in HEAD_PARTS.items())
        slices += [part(x, (front,)), part(x, (rest,))]
        rows, front = _turned(name, front, made, rotary)
        out = like(x, f"{name} with positions and the rest", dtype=front.dtype)
        turning.append(rows)
        joining.append([cat((front, rest), out)])
        results.append(out)
        fronts.append(front)
    blocks = [turning[0], joining[0], turning[1], joining[1]] if rotary.joins_each else [*turning, *joining]
    rows = [*slices, *(row for block in blocks for row in block)]
    return rows, (results[0], results[1]), (fronts[0], fronts[1])


HEAD_PARTS = {"to turn": "Q", "to leave": "D-Q"}


def _rounded(results: Pair, given: Pair) -> tuple[list[Row], Pair]:
    if results[0].dtype is given[0].dtype:
        return [], results
    lower = like(given[0], "q with positions, rounded"), like(given[1], "k with positions, rounded")
    return [cast(out, rounded) for out, rounded in zip(results, lower, strict=True)], lower


def _turned(name: str, x: Tensor, made: Tables, rotary: Rotary) -> tuple[list[Row], Tensor]:
    """x·cos + rotate_half(x)·sin."""
    cos, sin = made
    *outer, dim = x.shape
    half_shape: Shape = (*outer, f"{dim}/2")
    first, second, negated = (
        like(x, f"{name}.{half} half", shape=half_shape) for half in ("first", "second", "negated")
    )
    again, base = _cast_again(x, rotary)
    first, second, negated = (like(half, half.name, dtype=base.dtype) for half in (first, second, negated))
    rotated = like(base, f"{name}.rotated")
    dtype = wider(base.dtype, cos.dtype)
    straight, across, out = (
        like(x, part_name, dtype=dtype)
        for part_name in (f"{name}·cos", f"{name}.rotated·sin", f"{name} with positions")
    )
    casts_x, factor = _factor(x, rotary)
    casts_rotated, rotated_factor = _factor(rotated, rotary)
    rows = [
        *casts_x,
        multiply(factor, cos, straight),
        *again,
        part(base, (first,)),
        part(base, (second,)),
        scale(second, negated, name="neg"),
        cat((negated, first), rotated),
        *casts_rotated,
        multiply(rotated_factor, sin, across),
        add(straight, across, out),
    ]
    return rows, out


def _cast_again(x: Tensor, rotary: Rotary) -> tuple[list[Row], Tensor]:
    if not rotary.casts_twice or x.dtype is DType.FP32:
        return [], x
    wide = like(x, f"{x.name} in fp32", dtype=DType.FP32)
    return [cast(x, wide)], wide


def _factor(x: Tensor, rotary: Rotary) -> tuple[list[Row], Tensor]:
    if not (rotary.factors_in_fp32 or rotary.casts_twice) or x.dtype is DType.FP32:
        return [], x
    wide = like(x, f"{x.name} as an fp32 factor", dtype=DType.FP32)
    return [cast(x, wide)], wide
