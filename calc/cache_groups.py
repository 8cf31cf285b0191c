"""Keys and values whose numbers share a scale and a shift by groups of 64: QuantizedLayer of transformers 5.23.0
(cache_utils.py) with optimum-quanto 0.2.7 (MaxOptimizer, quantize_affine, pack_weights; unpack is its CUDA kernel), or
with HQQ.

The prompt is quantised at once. Later tokens stay as they are until there are 128 of them; then all keys and values,
which each pass writes out, are quantised anew.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from . import cache_hqq
from .dimensions import Blocks
from .dtype import DType
from .ledger import Dimension, Kind, Row, Tensor
from .primitives import cast, cat, copy, frame, like

GROUP = 64
"""q_group_size."""
RESIDUAL_LENGTH = 128
"""residual_length: tokens that are together quantised."""
BITS_OF_BYTE = 8


class GroupedType(NamedTuple):
    """How the numbers of a cache in groups are kept."""

    bits: int
    by_hqq: bool = False
    """By HQQ (cache_hqq.py), else by quanto."""


GROUPED_TYPES = {
    "int4": GroupedType(4),
    "int2": GroupedType(2),
    "hqq-int8": GroupedType(8, by_hqq=True),
    "hqq-int4": GroupedType(4, by_hqq=True),
    "hqq-int2": GroupedType(2, by_hqq=True),
}
"""By kv_cache_dtype."""


class Stored(NamedTuple):
    """Keys or values as the cache holds them."""

    codes: Tensor
    scales: Tensor
    shifts: Tensor


class Pass(NamedTuple):
    """Keys, or values, of a pass that adds a token."""

    text: Tensor
    """The token's."""
    codes: Stored
    """Found."""
    before: Tensor
    """The same written out."""
    residue: Tensor
    """Found, not quantised yet."""
    whole: Tensor
    """All, for attention."""
    longer: Tensor
    """The residue with the token's."""
    anew: Stored
    """All, quantised."""


class Groups(NamedTuple):
    """How a cache's numbers lie in it, and what a pass does with them."""

    type: GroupedType
    copies: tuple[bool, bool] = (False, False)
    """Of the prompt's keys and values, whether they lie otherwise than [B, K, S, D] before they are quantised."""
    requantises: bool = False
    """With its token there are as many as are quantised together."""

    @property
    def codes_per_byte(self) -> int:
        return BITS_OF_BYTE // self.type.bits

    def stored(self, plain: Tensor, suffix: str = "") -> Stored:
        """What the cache holds of `plain`."""
        name = plain.name.partition(" ")[0]
        groups = (Blocks(plain.shape, GROUP),)
        scales, shifts = (
            Tensor(f"{each} of {name}{suffix}", groups, plain.dtype, Kind.KV_CACHE) for each in ("scales", "shifts")
        )
        shape = (Blocks(plain.shape, GROUP * self.codes_per_byte), GROUP)
        if self.type.by_hqq:
            shape = (Blocks(plain.shape, GROUP), GROUP // self.codes_per_byte)
        return Stored(Tensor(f"codes of {name}{suffix}", shape, DType.UINT8, Kind.KV_CACHE), scales, shifts)

    def quantised(self, plain: Tensor, stored: Stored, *, copies: bool = False) -> list[Row]:
        """QuantizedLayer._quantize."""
        rows: list[Row] = []
        given = plain
        if copies:
            given = like(plain, f"{plain.name}, contiguous")
            rows.append(copy(plain, given, name="contiguous"))
        if self.type.by_hqq:
            return [*rows, *cache_hqq.quantised(given, *stored, self.codes_per_byte)]
        return [*rows, *self._by_quanto(given, stored)]

    def _by_quanto(self, given: Tensor, stored: Stored) -> list[Row]:
        """QuantoQuantizedLayer._quantize."""
        least, largest, span = (like(stored.scales, f"{given.name}, {each}") for each in ("least", "largest", "span"))
        moved, divided, rounded, clamped = (
            like(given, f"{given.name}, {each}") for each in ("moved", "divided", "rounded", "clamped")
        )
        numbers = like(given, f"{given.name}, as numbers", dtype=DType.UINT8)
        return [
            Row(name="amin", reads=(given,), writes=(least,)),
            Row(name="amax", reads=(given,), writes=(largest,)),
            Row(name="sub", reads=(largest, least), writes=(span,)),
            Row(name="div", reads=(span,), writes=(stored.scales,)),
            Row(name="neg", reads=(least,), writes=(stored.shifts,)),
            frame(least, largest),
            Row(name="add", reads=(given, stored.shifts), writes=(moved,), elementwise_flops=1),
            Row(name="div", reads=(moved, stored.scales), writes=(divided,), elementwise_flops=1),
            Row(name="round", reads=(divided,), writes=(rounded,)),
            Row(name="clamp", reads=(rounded,), writes=(clamped,)),
            cast(clamped, numbers),
            frame(rounded),
            Row(name="zeros", reads=(), writes=(stored.codes,)),
            *(self._packed(numbers, stored.codes, part) for part in range(self.codes_per_byte)),
            frame(given, numbers),
        ]

    def _packed(self, numbers: Tensor, codes: Tensor, part: int) -> Row:
        """One part of the numbers into the bits that are its."""
        shifted = replace(codes, name=f"{numbers.name}, part {part}", kind=Kind.ACTIVATIONS)
        written = replace(codes, name=f"{codes.name}, with part {part}")
        return Row(name="or_", reads=(codes, numbers), writes=(written,), in_place=True, temporaries=(shifted,))

    def written_out(self, stored: Stored, plain: Tensor) -> list[Row]:
        """QBitsDequantizer.forward, or HQQ's."""
        if self.type.by_hqq:
            return cache_hqq.written_out(plain, *stored, self.codes_per_byte)
        shape = (*stored.codes.shape, self.codes_per_byte)
        unpacked = Tensor(f"{stored.codes.name}, unpacked", shape, DType.UINT8)
        moved = replace(plain, name=f"{plain.name}, moved")
        return [
            Row(name="unpack", reads=(stored.codes,), writes=(unpacked,)),
            Row(name="mul", reads=(stored.scales, unpacked), writes=(plain,), elementwise_flops=1),
            Row(name="sub_", reads=(plain, stored.shifts), writes=(moved,), in_place=True, elementwise_flops=1),
            frame(unpacked),
        ]

    def met_by(self, text: Tensor, left: Tensor) -> Pass:
        """What a token's keys, or values, meet; `left`: all of them afterwards."""
        name = left.name.partition(" ")[0]
        before = _of_tokens(left, "Tc", f"{name} in codes, written out")
        residue, longer = (
            replace(_of_tokens(left, tokens, f"{name} not in codes{suffix}"), kind=Kind.KV_CACHE)
            for tokens, suffix in (("Tr", ""), ("Tr+1", ", and the token's"))
        )
        return Pass(
            text=text,
            codes=self.stored(before, ", before" if self.requantises else ""),
            before=before,
            residue=residue,
            whole=replace(left, name=f"{name}, for attention", kind=Kind.ACTIVATIONS),
            longer=longer,
            anew=self.stored(left),
        )


def _of_tokens(tensor: Tensor, tokens: Dimension, name: str) -> Tensor:
    """An activation like `tensor`, [B, tokens, ...], of another number of them."""
    return like(tensor, name, shape=(tensor.shape[0], tokens, *tensor.shape[2:]))


def one_more_token(passes: Sequence[Pass], groups: Groups) -> list[Row]:
    """QuantizedLayer.update."""
    rows = [row for each in passes for row in groups.written_out(each.codes, each.before)]
    rows += [cat((each.before, each.residue, each.text), each.whole) for each in passes]
    gone = [tensor for each in passes for tensor in (each.before, each.text)]
    if not groups.requantises:
        return [*rows, *(cat((each.residue, each.text), each.longer) for each in passes), frame(*gone)]
    for each in passes:
        rows += [*groups.quantised(each.whole, each.anew), frame(*each.codes)]
    return [*rows, frame(*(each.residue for each in passes), *gone)]
