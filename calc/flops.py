"""FLOPs of one optimizer step, read off the ledger's matrix products."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .ledger import Product, Row, Sizes, numel
from .lifetimes import Lifetimes
from .operators import SCORES

SCALING_FLOPS = 1
SOFTMAX_FLOPS = 3
"""Per score: the exponential, its share of the sum, the division."""


@dataclass(frozen=True, slots=True)
class Products:
    """The matrix products of one part of the model for one micro-batch, with how often each is computed."""

    forward: Mapping[Product, int]
    backward: Mapping[Product, int]
    recompute: Mapping[Product, int]
    needed: Mapping[Product, int]
    """Forward and backward without what a kernel computes again of its own forward."""


def products(rows: Iterable[Row], life: Lifetimes) -> Products:
    """The products of `rows`; of backward those whose gradients are wanted."""
    rows = tuple(rows)
    forward = Counter(product for row in rows for product in row.products)
    backward: Counter[Product] = Counter()
    rerun: Counter[Product] = Counter()
    for row in rows:
        wanted = [gradient for gradient in row.gradients if gradient.of in life.required]
        backward.update(product for gradient in wanted for product in gradient.products)
        if wanted:
            backward.update((*row.backward_products, *row.backward_rerun))
            rerun.update(row.backward_rerun)
    return Products(
        forward=forward,
        backward=backward,
        recompute=Counter(product for row in life.rerun for product in row.products),
        needed=forward + backward - rerun,
    )


def total_flops(counted: Mapping[Product, int], sizes: Sizes) -> int:
    """FLOPs of `counted`."""
    return sum(count * product.flops(sizes) for product, count in counted.items())


def causal_flops(counted: Mapping[Product, int], sizes: Sizes) -> int:
    """The same where a token attends to itself and those before it: (S + 1) / 2 of S keys on average."""
    return sum(
        count * product.flops(sizes) * (sizes["S"] + 1) // (2 * sizes["S"])
        if product.batch
        else count * product.flops(sizes)
        for product, count in counted.items()
    )


def elementwise_flops(rows: Iterable[Row], sizes: Sizes) -> int:
    """Element-wise operations of one forward; softmax counts three per element, everything else one."""
    return sum(row.elementwise_flops * numel(row.elementwise_shape or row.writes[0].shape, sizes) for row in rows if row.elementwise_flops)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionFlops:
    """Forward FLOPs of one layer's attention for one micro-batch, by part."""

    qkv_projection: int
    scores: int
    scaling: int
    softmax: int
    values: int
    output_projection: int


QKV_MODULES = ("c_attn", "q_proj", "k_proj", "v_proj", "query_key_value")
OUTPUT_MODULES = ("attn.c_proj", "o_proj", "dense")


def attention_flops(rows: Iterable[Row], sizes: Sizes) -> AttentionFlops:
    """The parts of one layer's attention, adapters left out."""
    linears: dict[str, int] = {"qkv": 0, "output": 0}
    core: list[int] = []
    for row in rows:
        flops = [product.flops(sizes) for product in row.products]
        if row.module.endswith(QKV_MODULES):
            linears["qkv"] += sum(flops)
        elif row.module.endswith(OUTPUT_MODULES):
            linears["output"] += sum(flops)
        elif any(product.batch for product in row.products):
            core += flops
    scores, values = core
    return AttentionFlops(
        qkv_projection=linears["qkv"],
        scores=scores,
        scaling=SCALING_FLOPS * numel(SCORES, sizes),
        softmax=SOFTMAX_FLOPS * numel(SCORES, sizes),
        values=values,
        output_projection=linears["output"],
    )
