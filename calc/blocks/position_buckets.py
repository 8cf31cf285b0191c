"""Which distances of tokens have a bias of their own (T5Attention, transformers 5.23.0, models/t5)."""

from calc.dtype import DType
from calc.ledger import Dimension, Row, Tensor
from calc.primitives import frame, like


def buckets_of(keys: Dimension) -> Tensor:
    """The bucket of each pair of a query and a key."""
    return Tensor("relative_position_bucket", ("S", keys), DType.INT64)


def buckets(found: Tensor, looking_up: Row, *, bidirectional: bool) -> list[Row]:
    """compute_bias: positions and distances, held until their bias is looked up by the buckets that are `found`."""
    queries = Tensor("context_position", ("S", 1), DType.INT64)
    first, keys = Tensor("positions", ("S",), DType.INT64), Tensor("memory_position", found.shape[1:], DType.INT64)
    distance = like(found, "relative_position")
    return [
        Row(name="arange", reads=(), writes=(first,)),
        Row(name="add", reads=(first,), writes=(queries,)),
        Row(name="arange", reads=(), writes=(keys,)),
        Row(name="sub", reads=(keys, queries), writes=(distance,)),
        *(_of_both_sides(distance, found) if bidirectional else _of_those_before(distance, found)),
        looking_up,
        frame(queries, keys, distance),
    ]


def _of_both_sides(distance: Tensor, found: Tensor) -> list[Row]:
    """_relative_position_bucket(bidirectional=True): half of the buckets are for keys behind the query."""
    behind, as_number, offset = (
        like(distance, name, dtype=dtype)
        for name, dtype in (("behind", DType.BOOL), ("behind, as a number", None), ("offset", None))
    )
    size = like(distance, "distance")
    logarithmic, is_small, large = _logarithmic(size)
    chosen = like(distance, "bucket of one side")
    return [
        Row(name="gt", reads=(distance,), writes=(behind,)),
        Row(name="to", reads=(behind,), writes=(as_number,)),
        Row(name="mul", reads=(as_number,), writes=(offset,)),
        Row(name="add", reads=(offset,), writes=(found,)),
        Row(name="abs", reads=(distance,), writes=(size,)),
        *logarithmic,
        Row(name="where", reads=(is_small, size, large, found), writes=(chosen,)),
        frame(chosen),
        frame(size, is_small, large),
    ]


def _of_those_before(distance: Tensor, found: Tensor) -> list[Row]:
    """_relative_position_bucket(bidirectional=False)."""
    zeros, least, size = (like(distance, name) for name in ("zeros", "least", "distance"))
    logarithmic, is_small, large = _logarithmic(size)
    chosen = like(distance, "bucket of one side")
    return [
        Row(name="zeros_like", reads=(), writes=(zeros,)),
        Row(name="min", reads=(distance, zeros), writes=(least,)),
        Row(name="neg", reads=(least,), writes=(size,)),
        *logarithmic,
        Row(name="where", reads=(is_small, size, large), writes=(chosen,)),
        Row(name="add", reads=(chosen,), writes=(found,)),
        frame(size, is_small, large),
    ]


def _logarithmic(size: Tensor) -> tuple[list[Row], Tensor, Tensor]:
    """Beyond half of the buckets they grow logarithmically: the rows, which distances are not beyond, and the buckets
    of those that are."""
    is_small = like(size, "is small", dtype=DType.BOOL)
    names = ("in fp32", "relative", "logarithm", "relative logarithm", "of the buckets")
    steps = [like(size, f"distance {name}", dtype=DType.FP32) for name in names]
    whole, beyond, limit, large = (like(size, f"large bucket{name}") for name in (", rounded", " moved", " limit", ""))
    operators = ("to", "div", "log", "div", "mul")
    given = (size, *steps[:-1])
    rows = [
        Row(name="lt", reads=(size,), writes=(is_small,)),
        *(Row(name=name, reads=(a,), writes=(b,)) for name, a, b in zip(operators, given, steps, strict=True)),
        Row(name="to", reads=(steps[-1],), writes=(whole,)),
        Row(name="add", reads=(whole,), writes=(beyond,)),
        Row(name="full_like", reads=(), writes=(limit,)),
        Row(name="min", reads=(beyond, limit), writes=(large,)),
    ]
    return rows, is_small, large
