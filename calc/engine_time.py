"""Seconds of an engine's passes as a roofline over the operations that vLLM 0.27.1 runs.

model_executor/models/llama.py and its kin. What a layer does with a number of tokens is written down here, for its
kernels are others than transformers': norms add the residual stream on the way, q, k, v and gate, up are one product
each, keys and values are written into pages in place, and attention reads them from there.

The prompts of all sequences go through first, `max_num_batched_tokens` of their tokens a pass, one behind the other
(chunked prefill): each pass reads all weights, a piece of a prompt the pages of all before it. Full pages of a common
prefix are run once. Then each pass adds a token to every sequence. vLLM lets sequences whose prompt is through go on in
the passes of the others; the work is the same. Left out: sampling, what the scheduler takes on the host, cascade
attention over a common prefix, Marlin's sums; queries and keys in fp8 count as products of the weights' type.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from .architecture import Layer
from .dtype import DType
from .efficiency import reachable
from .engine import NORMS_HEADS, VOCABULARY_MULTIPLE, Engine
from .flops import FLOPS_PER_PRODUCT
from .hardware import Gpu
from .kernels import FP8_INPUTS_PER_SCALE, round_up
from .ledger import Kind
from .paging import Kernel
from .prompt_pieces import num_cuts, seen_pairs, tokens_before
from .roofline import InferenceTime, Roof
from .sizes import Sizes, storage_bytes
from .traffic import Done, Holds, Operation, Work

QUERY_KEY_VALUE = frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj"})
GATE_AND_UP = frozenset({"gate_proj", "up_proj", "gate_up_proj"})
CORE_PRODUCTS = 2
"""Queries with keys, and what comes of it with values."""
READ_AND_WRITTEN = 2
NO_SIZES = Sizes({})
"""Its numbers are computed here, not read off rows."""


def engine_time(engine: Engine, gpu: Gpu) -> InferenceTime | None:
    """Seconds of all prompts and outputs on `gpu`. None where no peak is published for a type of its products."""
    passes = _Passes(engine)
    prefill, steps = [*passes.prefill()], list(passes.decoding())
    limits = {done.work.dtype: reachable(gpu, done.work.dtype) for done in prefill if done.flops}
    known = {dtype: limit for dtype, limit in limits.items() if limit is not None}
    if len(known) < len(limits):
        return None
    roof = Roof(known)
    return InferenceTime(
        batch_size=engine.num_sequences,
        prompt_length=engine.context - engine.output_length,
        output_length=engine.output_length,
        prefill=roof.pass_time(prefill),
        first_decode=roof.pass_time(steps[0][1]) if steps else None,
        last_decode=roof.pass_time(steps[-1][2]) if steps else None,
        decode_seconds=sum(roof.growing_seconds(*step) for step in steps),
        reachable=known[engine.plan.numerics.compute],
        ridge_batch_size=_ridge_batch_size(steps[-1][2], engine.num_sequences, roof) if steps else None,
        tdp_watts=gpu.tdp_watts,
    )


def _ridge_batch_size(decode: list[Done], batch_size: int, roof: Roof) -> int:
    """The smallest batch whose products with weights take as long as reading these weights."""
    with_weights = [done for done in decode if done.flops and done.bytes_moved[Holds.WEIGHTS]]
    compute = sum(done.times * roof.seconds(done)[0] / batch_size for done in with_weights)
    memory = sum(done.times * done.bytes_moved[Holds.WEIGHTS] for done in with_weights) / roof.bytes_per_second
    return ceil(memory / compute)


@dataclass(frozen=True)
class _Passes:
    """What the passes of one engine do. Bytes and FLOPs are exact integers."""

    engine: Engine

    @cached_property
    def weight_bytes(self) -> Mapping[str, int]:
        """By the name of the module, `q_proj`, all layers together."""
        found: Counter[str] = Counter()
        for _, tensors, times in self.engine.persistent():
            for tensor, count in tensors.items():
                if tensor.kind in {Kind.PARAMETERS, Kind.BUFFERS}:
                    found[tensor.name.split(".")[-2]] += times * count * storage_bytes(tensor, self.engine.sizes[0])
        return found

    @property
    def num_layers(self) -> int:
        return self.engine.architecture.num_layers

    def of_layers(self, names: frozenset[str]) -> int:
        """Of one layer's modules of these names."""
        return sum(self.weight_bytes[name] for name in names) // self.num_layers

    # ---- Which tokens a pass has

    def prefill(self) -> Iterator[Done]:
        """All passes over prompts."""
        engine, pass_tokens = self.engine, self.engine.plan.max_num_batched_tokens or 1
        groups = engine.prompts
        tokens = sum(group.tokens for group in groups)
        full, rest = divmod(tokens, pass_tokens)
        yield from self._of_tokens(pass_tokens, full)
        yield from self._of_tokens(rest, 1) if rest else ()
        for layer, count in engine.architecture.layers:
            window = layer.sliding_window
            pairs = sum(seen_pairs(group, window) for group in groups)
            # A piece reads its own tokens and those before it that its first token sees.
            before = sum(tokens_before(group, pass_tokens, window and window - 1) for group in groups)
            yield self._attention(layer, count, tokens, pairs, tokens + before)
        cuts = sum(num_cuts(group, pass_tokens) for group in groups)
        yield from self._head(engine.num_sequences + cuts, full + bool(rest))

    def decoding(self) -> Iterator[tuple[int, list[Done], list[Done]]]:
        """Runs of passes in which each operation's bytes and FLOPs grow evenly: their number, the first, the last. At
        the end of a window they cease to grow."""
        engine = self.engine
        first = engine.context - engine.output_length + 1
        windows = {layer.sliding_window for layer, _ in engine.architecture.layers if layer.sliding_window}
        ends = sorted({window for window in windows if first <= window < engine.context} | {engine.context})
        for end in ends if engine.output_length else ():
            yield end - first + 1, self._adding(first), self._adding(end)
            first = end + 1

    def _adding(self, context: int) -> list[Done]:
        """The pass after which each sequence has `context` tokens."""
        num_tokens = self.engine.num_sequences
        done = [*self._of_tokens(num_tokens, 1), *self._head(num_tokens, 1)]
        for layer, count in self.engine.architecture.layers:
            seen = num_tokens * min(context, layer.sliding_window or context)
            done.append(self._attention(layer, count, num_tokens, seen, seen))
        return done

    # ---- What it does with them

    @property
    def layer(self) -> Layer:
        return self.engine.architecture.layers[0][0]

    @property
    def itemsize(self) -> int:
        return int(self.engine.plan.numerics.weights.itemsize)

    def _of_tokens(self, tokens: int, times: int) -> Iterator[Done]:
        """All but attention and the head, of `times` passes over so many tokens."""
        layer, layers, each = self.layer, self.num_layers, tokens * self.itemsize
        width, inner = self.engine.architecture.hidden_size, layer.intermediate_size
        heads, pairs = layer.num_attention_heads * layer.head_dim, layer.num_key_value_heads * layer.head_dim
        table = int(self.engine.sizes[0]["Q",])
        kind = layer.kind
        yield self._moving(Operation.EMBEDDING, times, each * width, weights=each * width)
        # Each norm reads and writes the stream and what is added to it; the first has nothing to add.
        yield self._moving(Operation.NORM, times, READ_AND_WRITTEN * each * width)
        yield self._moving(Operation.NORM, times * READ_AND_WRITTEN * layers, 2 * READ_AND_WRITTEN * each * width)
        if self.engine.architecture.model_type in NORMS_HEADS:
            yield self._moving(Operation.NORM, times * layers, READ_AND_WRITTEN * each * (heads + pairs))
        per_layer = times * layers
        wide = heads + 2 * pairs
        weights = self.of_layers(QUERY_KEY_VALUE)
        yield from self._product(
            Operation.PROJECTIONS, per_layer, tokens, (width, wide), weights, has_bias=kind.query_key_value_bias
        )
        turned = READ_AND_WRITTEN * each * (heads + pairs) + each * table
        yield self._moving(Operation.POSITIONS, per_layer, turned)
        written = tokens * self.engine.page_bytes_of(layer) // self.engine.page_size
        yield self._moving(Operation.CACHE_UPDATE, per_layer, 2 * each * pairs, cache=written)
        weights = self.of_layers(frozenset({"o_proj"}))
        yield from self._product(
            Operation.PROJECTIONS, per_layer, tokens, (heads, width), weights, has_bias=kind.output_bias
        )
        weights = self.of_layers(GATE_AND_UP)
        yield from self._product(Operation.MLP, per_layer, tokens, (width, 2 * inner), weights, has_bias=kind.mlp_bias)
        yield self._moving(Operation.MLP, per_layer, 3 * each * inner)
        weights = self.of_layers(frozenset({"down_proj"}))
        yield from self._product(Operation.MLP, per_layer, tokens, (inner, width), weights, has_bias=kind.mlp_bias)

    def _attention(self, layer: Layer, count: int, tokens: int, pairs: int, read: int) -> Done:
        """Of `count` layers, over `pairs` of queries and keys; `read`: tokens whose keys and values are read."""
        width = layer.num_attention_heads * layer.head_dim
        return _done(
            Operation.ATTENTION_CORE,
            count,
            self.engine.plan.numerics.compute,
            flops=FLOPS_PER_PRODUCT * CORE_PRODUCTS * pairs * width,
            activations=READ_AND_WRITTEN * tokens * width * self.itemsize,
            cache=read * self.engine.page_bytes_of(layer) // self.engine.page_size,
        )

    def _head(self, rows: int, times: int) -> Iterator[Done]:
        """Logits of each piece's last token, in `times` passes together."""
        architecture = self.engine.architecture
        width, vocabulary = architecture.hidden_size, round_up(architecture.vocab_size, VOCABULARY_MULTIPLE)
        weights = self.weight_bytes["lm_head"] or self.weight_bytes["embed_tokens"]
        yield self._moving(Operation.HEAD, 1, READ_AND_WRITTEN * rows * width * self.itemsize)
        yield _done(
            Operation.HEAD,
            1,
            self.engine.plan.numerics.compute,
            flops=FLOPS_PER_PRODUCT * rows * width * vocabulary,
            weights=times * weights,
            activations=rows * (width + vocabulary) * self.itemsize,
        )

    def _moving(self, operation: Operation, times: int, activations: int, *, weights: int = 0, cache: int = 0) -> Done:
        """What multiplies nothing."""
        dtype = self.engine.plan.numerics.compute
        return _done(operation, times, dtype, activations=activations, weights=weights, cache=cache)

    def _product(
        self, operation: Operation, times: int, tokens: int, sides: tuple[int, int], weights: int, *, has_bias: bool
    ) -> Iterator[Done]:
        """A linear module; in fp8 its input is cast first, and a bias added after it."""
        width, made = sides
        dtype, itemsize = self.engine.plan.numerics.compute, self.itemsize
        given = tokens * width * itemsize
        if self.engine.kernel == Kernel.FP8:
            dtype, cast = DType.FP8, tokens * (width + DType.FP32.nbytes(ceil(width / FP8_INPUTS_PER_SCALE)))
            yield self._moving(operation, times, given + cast)
            given = cast
            if has_bias:
                yield self._moving(operation, times, READ_AND_WRITTEN * tokens * made * itemsize)
        yield _done(
            operation,
            times,
            dtype,
            flops=FLOPS_PER_PRODUCT * tokens * width * made,
            weights=weights,
            activations=given + tokens * made * itemsize,
        )


def _done(
    operation: Operation,
    times: int,
    dtype: DType,
    *,
    flops: int = 0,
    weights: int = 0,
    cache: int = 0,
    activations: int = 0,
) -> Done:
    """One operation of one layer; the numbers are of one time."""
    work = Work(operation, operation.value, "", dtype, (), None, ())
    moved = {Holds.WEIGHTS: weights, Holds.KV_CACHE: cache, Holds.ACTIVATIONS: activations}
    return Done(work, times, flops, flops, moved, NO_SIZES)
