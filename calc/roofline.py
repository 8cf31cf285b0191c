"""Seconds of a generation as a roofline over the ledger's rows (Williams et al. 2009).

An operation takes as long as its products or its bytes take, whichever is longer: max(FLOPs / what the GPU computes a
second, bytes / what its memory moves a second). Operations follow each other, as on one stream. So a pass is a sum, and
of decoding, where from token to token each operation's FLOPs and bytes grow by the same number, an exact one in closed
form.

Left out: the host. A GPU never waits for it here, as with CUDA graphs; eager PyTorch issues each of `num_kernels` by
itself, some microseconds each, which small batches of small models wait for. Element-wise arithmetic, which no kernel
here waits for; sampling; what is transferred to and from the host.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Any

from .dimensions import MOST_FUSED_ROWS
from .dtype import DType
from .efficiency import Reachable, reachable
from .generation import Generation
from .hardware import Gpu
from .sizes import Sizes
from .traffic import Done, Holds, Operation, decoding_work, forward_work


class Bound(StrEnum):
    """What an operation waits for."""

    COMPUTE = "compute"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTime:
    """Operations of one kind, together."""

    operation: Operation
    seconds: float
    compute_bound_seconds: float
    """Of those that wait for products; the others wait for memory."""
    flops: int
    bytes_moved: Mapping[Holds, int]
    num_kernels: int
    """At least: some operations are several."""

    @property
    def bound(self) -> Bound:
        """What most of its time is waited for."""
        return Bound.COMPUTE if 2 * self.compute_bound_seconds > self.seconds else Bound.MEMORY

    @property
    def flops_per_byte(self) -> float:
        """Arithmetic intensity."""
        return self.flops / sum(self.bytes_moved.values())

    def to_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return own | {
            "bound": self.bound,
            "bytes_moved": {holds.value: size for holds, size in self.bytes_moved.items()},
            "flops_per_byte": self.flops_per_byte,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTime:
    """One forward pass."""

    parts: tuple[PartTime, ...]
    """By kind of operation, in the order in which a layer runs them."""

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def compute_bound_seconds(self) -> float:
        return sum(part.compute_bound_seconds for part in self.parts)

    @property
    def flops(self) -> int:
        return sum(part.flops for part in self.parts)

    @property
    def num_kernels(self) -> int:
        return sum(part.num_kernels for part in self.parts)

    @property
    def bytes_moved(self) -> dict[Holds, int]:
        return {holds: sum(part.bytes_moved[holds] for part in self.parts) for holds in Holds}

    @property
    def bound(self) -> Bound:
        return Bound.COMPUTE if 2 * self.compute_bound_seconds > self.seconds else Bound.MEMORY

    def to_dict(self) -> dict[str, Any]:
        total_bytes = sum(self.bytes_moved.values())
        return {
            "seconds": self.seconds,
            "compute_bound_seconds": self.compute_bound_seconds,
            "bound": self.bound,
            "flops": self.flops,
            "bytes_moved": {holds.value: size for holds, size in self.bytes_moved.items()},
            "flops_per_byte": self.flops / total_bytes,
            "num_kernels": self.num_kernels,
            "parts": [part.to_dict() for part in self.parts],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceTime:
    """Seconds of prompt and output, all sequences of a batch together."""

    batch_size: int
    prompt_length: int
    output_length: int
    prefill: PassTime
    first_decode: PassTime | None
    last_decode: PassTime | None
    decode_seconds: float
    """Of all tokens of the output."""
    reachable: Reachable
    ridge_batch_size: int | None
    """The batch from which on the products with weights wait for the multiprocessors while decoding."""
    tdp_watts: int | None

    @property
    def prefill_seconds(self) -> float:
        return self.prefill.seconds

    @property
    def total_seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds

    @property
    def seconds_per_output_token(self) -> float | None:
        """Of one sequence, on average over its output; the prompt's pass is not in it."""
        return self.decode_seconds / self.output_length if self.output_length else None

    @property
    def output_tokens_per_second(self) -> float | None:
        """Of all sequences, while decoding."""
        each = self.seconds_per_output_token
        return self.batch_size / each if each else None

    @property
    def joules_per_output_token(self) -> float | None:
        """While decoding, at the power the board is made for: at most."""
        rate = self.output_tokens_per_second
        return self.tdp_watts / rate if rate and self.tdp_watts is not None else None

    def to_dict(self) -> dict[str, Any]:
        first, last = self.first_decode, self.last_decode
        return {
            "prefill_seconds": self.prefill_seconds,
            "prefill_tokens_per_second": self.batch_size * self.prompt_length / self.prefill_seconds,
            "decode_seconds": self.decode_seconds,
            "seconds_per_output_token": self.seconds_per_output_token,
            "first_decode_seconds": first.seconds if first else None,
            "last_decode_seconds": last.seconds if last else None,
            "output_tokens_per_second": self.output_tokens_per_second,
            "total_seconds": self.total_seconds,
            "joules_per_output_token": self.joules_per_output_token,
            "ridge_flops_per_byte": self.reachable.ridge_flops_per_byte,
            "ridge_batch_size": self.ridge_batch_size,
            "assumed": self.reachable._asdict(),
            "prefill": self.prefill.to_dict(),
            "first_decode": first.to_dict() if first else None,
            "last_decode": last.to_dict() if last else None,
        }


def inference_time(generation: Generation, gpu: Gpu) -> InferenceTime | None:
    """Seconds of `generation` on `gpu`. None where no peak is published for a type of its products."""
    prefill = forward_work(generation.prefill)
    growths = [
        (growth.num_tokens, decoding_work(growth.first), decoding_work(growth.last)) for growth in generation.growths
    ]
    limits = {done.work.dtype: reachable(gpu, done.work.dtype) for done in prefill if done.flops}
    known = {dtype: limit for dtype, limit in limits.items() if limit is not None}
    if len(known) < len(limits):
        return None
    roof, workload = Roof(known), generation.prefill.workload
    return InferenceTime(
        batch_size=workload.micro_batch_size // (generation.plan.num_beams or 1),
        prompt_length=workload.sequence_length,
        output_length=workload.output_length,
        prefill=roof.pass_time(prefill),
        first_decode=roof.pass_time(growths[0][1]) if growths else None,
        last_decode=roof.pass_time(growths[-1][2]) if growths else None,
        decode_seconds=sum(roof.growing_seconds(*growth) for growth in growths),
        reachable=known[generation.plan.numerics.compute],
        ridge_batch_size=roof.ridge_batch_size(growths[-1][2], workload.micro_batch_size) if growths else None,
        tdp_watts=gpu.tdp_watts,
    )


@dataclass(frozen=True, slots=True)
class Roof:
    """What one GPU reaches, by the type of the products."""

    limits: Mapping[DType, Reachable]

    def pass_time(self, works: Iterable[Done]) -> PassTime:
        """One forward pass."""
        found: dict[Operation, list[Done]] = {operation: [] for operation in Operation}
        for done in works:
            found[done.work.operation].append(done)
        return PassTime(parts=tuple(self._part(operation, done) for operation, done in found.items() if done))

    def _part(self, operation: Operation, works: list[Done]) -> PartTime:
        seconds = compute_bound_seconds = 0.0
        moved = dict.fromkeys(Holds, 0)
        for done in works:
            compute, memory = self.seconds(done)
            seconds += done.times * max(compute, memory)
            compute_bound_seconds += done.times * compute if compute > memory else 0.0
            for holds, nbytes in done.bytes_moved.items():
                moved[holds] += done.times * nbytes
        return PartTime(
            operation=operation,
            seconds=seconds,
            compute_bound_seconds=compute_bound_seconds,
            flops=sum(done.times * done.flops for done in works),
            bytes_moved=moved,
            num_kernels=sum(done.times for done in works),
        )

    def seconds(self, done: Done) -> tuple[float, float]:
        """What the products take, and what the bytes."""
        compute = done.done_flops / self.limits[done.work.dtype].flops_per_second if done.flops else 0.0
        return compute, sum(done.bytes_moved.values()) / self.bytes_per_second

    @property
    def bytes_per_second(self) -> float:
        """The same for all types."""
        return next(iter(self.limits.values())).bytes_per_second

    def growing_seconds(self, num_passes: int, first: list[Done], last: list[Done]) -> float:
        """All passes from the first to the last, between which each operation's FLOPs and bytes grow evenly. Where they
        are not the same operations (a mask that is padded for some lengths) the passes' seconds are taken to."""
        if [done.work for done in first] != [done.work for done in last]:
            return num_passes * (self.pass_time(first).seconds + self.pass_time(last).seconds) / 2
        return sum(
            done.times * summed_longest(self.seconds(done), self.seconds(grown), num_passes)
            for done, grown in zip(first, last, strict=True)
        )

    def ridge_batch_size(self, decode: list[Done], batch_size: int) -> int:
        """The smallest batch whose products with weights take as long as reading all of these weights, and writing them
        out where a larger batch does."""
        compute = memory = 0.0
        sizes_of = {id(done.sizes): _of_a_batch(done.sizes) for done in decode}
        for done in decode:
            weights = [each for each in done.work.moved if each.holds is Holds.WEIGHTS]
            if done.flops and weights:
                sizes = sizes_of[id(done.sizes)]
                compute += done.times * done.flops / batch_size / self.limits[done.work.dtype].flops_per_second
                memory += done.times * sum(each.whole_nbytes(sizes) for each in weights) / self.bytes_per_second
        return ceil(memory / compute)


def _of_a_batch(sizes: Sizes) -> Sizes:
    """`sizes` with so many sequences that no fused kernel reads 4-bit weights."""
    return Sizes(
        {symbol: size for symbol, size in sizes.items() if isinstance(symbol, str)} | {"B": MOST_FUSED_ROWS + 1}
    )


def summed_longest(first: tuple[float, float], last: tuple[float, float], num_steps: int) -> float:
    """The sum over `num_steps` of the larger of two numbers, each of which grows evenly from its first to its last."""
    if num_steps <= 1:
        return num_steps * max(first)
    growth = [(end - start) / (num_steps - 1) for start, end in zip(first, last, strict=True)]
    order = sorted((0, 1), key=lambda which: (first[which], growth[which]), reverse=True)
    longer, other = order
    overtaken = num_steps
    if growth[other] > growth[longer]:
        overtaken = min(num_steps, ceil((first[longer] - first[other]) / (growth[other] - growth[longer])))

    def summed(which: int, begin: int, end: int) -> float:
        return (end - begin) * (first[which] + growth[which] * (begin + end - 1) / 2)

    return summed(longer, 0, overtaken) + summed(other, overtaken, num_steps)
