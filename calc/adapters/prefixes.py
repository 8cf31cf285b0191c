"""Prefix tuning, and P-tuning v2, which PEFT offers as prefix tuning without projection: trained keys and values before
the text's in every layer (peft/peft_model.py, get_prompt; peft/tuners/prefix_tuning/model.py)."""

from collections.abc import Iterator
from dataclasses import replace

from calc.cache import Cache, CacheUse
from calc.dtype import DType
from calc.ledger import Component, Gradient, Lent, Row, Section, Tensor
from calc.operators import Numerics, embedding, parameter, stamped
from calc.primitives import cast, frame, like, view

from .facts import AdapterFacts
from .prompts import ENCODER, mlp

KEYS_AND_VALUES = 2


def with_prefix(section: Section, facts: AdapterFacts, numerics: Numerics) -> Section:
    """`section`, the embedding, after the prefixes of all layers: made as one tensor, then copied into the cache."""
    past = Tensor("prefixes", ("B", "T", KEYS_AND_VALUES, "L", "K", "D"), numerics.weights)
    lent_to_layers = [
        replace(each, tensor=replace(each.tensor, name=f"{layer}.{each.tensor.name}"))
        for layer in range(facts.num_prefixed_layers)
        for each in Cache(CacheUse.PREFIX).lent(numerics)
    ]
    rows = stamped([*_encoded(past, facts, numerics), *_cached(past, lent_to_layers)], Component.ADAPTER, ENCODER)
    return replace(section, rows=(*rows, *section.rows), lent=tuple(lent_to_layers))


def _encoded(past: Tensor, facts: AdapterFacts, numerics: Numerics) -> Iterator[Row]:
    """PrefixEncoder, in fp32: an embedding of each virtual token as wide as all keys and values, or, with
    prefix_projection, as those of one layer, from which two linear layers make all. For every sequence alike."""
    types = numerics.of(DType.FP32)
    ids = Tensor("virtual token ids", ("B", "T"), DType.INT64)
    width = ("K", "D") if facts.prefix_projection else past.shape[2:]
    encoded = Tensor(f"{ENCODER}.embedding output", ("B", "T", *width), types.weights)
    weight = parameter(f"{ENCODER}.embedding.weight", ("T", *width), types, num_columns=len(width))
    yield Row(name="to", reads=(), writes=(ids,))
    yield embedding(weight, ids, encoded)
    if facts.prefix_projection:
        sides = (("K", "D"), ("E",), past.shape[2:])
        rows, encoded = mlp(f"{ENCODER}.transform", encoded, sides, "tanh", types)
        yield from rows
    yield cast(encoded, past) if encoded.dtype is not past.dtype else view(encoded, past)


def _cached(past: Tensor, lent: list[Lent]) -> Iterator[Row]:
    """A cache of layers, each with copies of its keys and its values (DynamicCache.__init__). Left out: of one virtual
    token of one sequence the first gradient is no copy."""
    parts = [like(past, f"{each.tensor.name}, part", shape=each.tensor.shape) for each in lent]
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    by_layer = like(past, "prefixes by layer")
    layers, sliced = (
        [
            like(past, f"{what} of layer {layer}", shape=(KEYS_AND_VALUES, *parts[0].shape))
            for layer in range(len(pairs))
        ]
        for what in ("prefix", "prefix slice")
    )
    yield view(past, by_layer, copies_gradient=True)
    yield Row(name="split", reads=(by_layer,), writes=tuple(layers), gradients=(Gradient(of=by_layer),), is_view=True)
    for layer, pair in enumerate(pairs):
        for name, x, outs in (("slice", layers[layer], (sliced[layer],)), ("unbind", sliced[layer], pair)):
            yield Row(name=name, reads=(x,), writes=outs, gradients=(Gradient(of=x),), is_view=True)
        for each, copied in zip(pair, lent[2 * layer : 2 * layer + 2], strict=True):
            gradient = Gradient(of=each, passes=True, viewed=True)
            yield Row(name="cat", reads=(each,), writes=(copied.tensor,), gradients=(gradient,))
    yield frame(past)
