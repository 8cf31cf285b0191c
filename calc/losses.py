"""The loss: from logits, or head and loss in one call, chunk by chunk, with their gradients made in forward.

Of such a call only the first two chunks are rows, because a chunk's logits overwrite those of the chunk before: the
first makes the buffers, the second finds what is left of the first; later ones are like the second, or shorter.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from .dtype import DType
from .ledger import Component, Gradient, Kind, Product, Row, Shape, Tensor
from .operators import TOKENS, Numerics, autocast_weight, stamped
from .primitives import add, cast, frame, like, log_softmax, scale, unary
from .scenario import Loss

CHUNKS: dict[str, Shape] = {"first": ("C",), "second": ("C2",)}
"""Tokens of the first chunk and of the second."""

TORCH_CHUNKS = 2
"""LinearCrossEntropyOptions' default on CUDA is `aspect_ratio:2`: a chunk's share of the tokens, halved."""


class LinearLoss(NamedTuple):
    """All that decides which rows head and loss in one call have."""

    loss: Loss
    one_sequence: bool
    several_chunks: bool
    trained: bool
    """The head's weight gets a gradient."""
    narrow: bool
    """A chunk of logits has fewer bytes than one of hidden states: too few to lend them its storage."""


def chunk_tokens(loss: Loss, num_tokens: int, vocab_size: int, hidden_size: int) -> int:
    """Tokens whose logits are made at once, so that they take about as much as all hidden states.

    LinearCrossEntropyOptions._compute_batch_chunk_size (torch 2.13.0) and fused_linear_cross_entropy_forward
    (liger_kernel 0.8.5).
    """
    expansion = -(-vocab_size // hidden_size)
    share = 1 << (-(-num_tokens // expansion) - 1).bit_length()
    if loss is Loss.CHUNKED_CROSS_ENTROPY:
        share = max(1, share // TORCH_CHUNKS)
    return min(share, num_tokens)


def larger_chunks(vocab_size: int, hidden_size: int, most_tokens: int) -> list[int]:
    """The numbers of tokens from which on chunks are larger: the others of the step may then need less."""
    expansion = -(-vocab_size // hidden_size)
    return [(expansion << power) + 1 for power in range((most_tokens // expansion).bit_length())]


def logits_dtype(dtype: DType) -> DType:
    """Of a chunk's logits in F.linear_cross_entropy, by the hidden states' type."""
    return DType.FP16 if dtype is DType.FP16 else DType.FP32


def lends_nothing(vocab_size: int, hidden_size: int, dtype: DType) -> bool:
    """A chunk's logits have fewer bytes than its hidden states (_ChunkContext.mul, weight_grad_uses_logits_buf_temp
    in its build)."""
    return vocab_size * logits_dtype(dtype).itemsize < hidden_size * dtype.itemsize


def cross_entropy(logits: Tensor, *, one_sequence: bool, z_loss: bool = False) -> tuple[list[Row], Tensor]:
    """ForCausalLMLoss: fp32 logits, labels shifted by padding, log-softmax, negative log-likelihood; ends with the
    mean loss, which `z_loss` is added to."""
    rows: list[Row] = []
    values = logits
    if logits.dtype is not DType.FP32:
        values = like(logits, "logits in fp32", dtype=DType.FP32)
        rows.append(cast(logits, values))
    padded = Tensor("labels padded", ("B", "S+1"), DType.INT64)
    target = Tensor("target", TOKENS, DType.INT64)
    log_probabilities = like(values, "log probabilities")
    loss, weight = (Tensor(name, (), DType.FP32) for name in ("loss", "number of targets"))
    rows += [
        Row(name="pad", reads=(), writes=(padded,)),
        # The shifted labels of one sequence lie side by side already: no copy is made.
        Row(name="shift", reads=(padded,), writes=(target,), is_view=one_sequence),
        log_softmax(values, log_probabilities),
        Row(
            name="nll_loss",
            reads=(log_probabilities, target),
            writes=(loss, weight),
            gradients=(Gradient(of=log_probabilities),),
            saves=(log_probabilities, target, weight),
        ),
    ]
    if z_loss:
        adding, loss = _with_z_loss(loss, values, target)
        rows += adding
    rows.append(frame(values, padded))
    return stamped(rows, Component.LOSS, "loss_function"), loss


def _with_z_loss(loss: Tensor, logits: Tensor, target: Tensor) -> tuple[list[Row], Tensor]:
    """OLMo's cross_entropy_loss (olmo/train.py, compute_z_loss): `logits.logsumexp(-1).pow(2)` where a label counts,
    its mean, times a number, added to the loss.

    Inside logsumexp are the largest logits and the exponentials of the differences to them (ReduceOps.cpp,
    logsumexp_out_impl); its gradient is `grad * (self - result).exp()` (FunctionsManual.cpp).
    """
    sums, squared, counting = (like(target, name, dtype=DType.FP32) for name in ("logsumexp", "its square", "counting"))
    counted = like(target, "labels that count", dtype=DType.BOOL)
    largest, differences = like(sums, "largest logits"), like(logits, "logits below the largest")
    mean, weighted, total = (like(loss, name) for name in ("mean of squares", "z-loss", "loss with z-loss"))
    of_powers = tuple(like(sums, name) for name in ("power in pow_backward", "multiple of it"))
    in_backward = tuple(like(logits, f"{name} in logsumexp_backward") for name in ("difference", "exponential"))
    rows = [
        Row(
            name="logsumexp",
            reads=(logits,),
            writes=(sums,),
            gradients=(Gradient(of=logits),),
            saves=(logits, sums),
            temporaries=(largest, differences),
            backward_temporaries=in_backward,
        ),
        replace(unary("pow", sums, squared), backward_temporaries=of_powers),
        Row(name="ne", reads=(target,), writes=(counted,)),
        Row(
            name="mul",
            reads=(squared, counted),
            writes=(counting,),
            gradients=(Gradient(of=squared, needs=(counted,)),),
        ),
        Row(name="mean", reads=(counting,), writes=(mean,), gradients=(Gradient(of=counting),)),
        scale(mean, weighted),
        add(loss, weighted, total),
        frame(loss, counting, weighted),
    ]
    return rows, total


LABELS = Tensor("labels", TOKENS, DType.INT64, Kind.INPUTS)
"""One for each token; those of -100 change no tensor."""


def unshifted_cross_entropy(logits: Tensor, labels: Tensor, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """F.cross_entropy of logits in their own type; under autocast nll_loss alone is computed in fp32."""
    given = like(logits, "log probabilities")
    rows, log_probabilities = [log_softmax(logits, given)], given
    if numerics.autocast:
        log_probabilities = like(given, "log probabilities in fp32", dtype=DType.FP32)
        rows.append(cast(given, log_probabilities))
    loss, weight = (Tensor(name, (), log_probabilities.dtype) for name in ("loss", "number of targets"))
    rows.append(
        Row(
            name="nll_loss",
            reads=(log_probabilities, labels),
            writes=(loss, weight),
            gradients=(Gradient(of=log_probabilities),),
            saves=(log_probabilities, labels, weight),
        )
    )
    rows.append(frame(given))
    return stamped(rows, Component.LOSS, "loss_function"), loss


def linear_loss(x: Tensor, weight: Tensor, facts: LinearLoss, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """The mean loss of hidden states `x` and head `weight`, called as Liger's lce_forward calls it."""
    padded = Tensor("labels padded", ("B", "S+1"), DType.INT64)
    target = Tensor("target", TOKENS, DType.INT64)
    loss = Tensor("loss", (), DType.FP32)
    shift = [
        Row(name="pad", reads=(), writes=(padded,)),
        Row(name="shift", reads=(padded,), writes=(target,), is_view=facts.one_sequence),
    ]
    call = _torch_call if facts.loss is Loss.CHUNKED_CROSS_ENTROPY else _liger_call
    rows = [*call(x, weight, target, loss, facts, numerics), frame(x, padded, target)]
    return [*stamped(shift, Component.LOSS, "loss_function"), *stamped(rows, Component.HEAD, "lm_head")], loss


def _node(
    name: str, x: Tensor, weight: Tensor, out: Tensor, *, saved: bool, temporaries: tuple[Tensor, ...] = ()
) -> Row:
    """Its products all run in forward; backward multiplies the gradients in place by what it receives."""
    product = Product((), TOKENS, ("V",), ("H",))
    return Row(
        name=name,
        reads=(x, weight),
        writes=(out,),
        gradients=(
            Gradient(of=x, in_forward=True, products=(product,), viewed=True),
            Gradient(of=weight, in_forward=True, products=(product,)),
        ),
        hooks_see_gradients=saved,
        products=(product,),
        backward_temporaries=temporaries,
    )


def _torch_call(
    x: Tensor, weight: Tensor, target: Tensor, loss: Tensor, facts: LinearLoss, numerics: Numerics
) -> Iterator[Row]:
    """F.linear_cross_entropy with LinearCrossEntropyOptions() on CUDA: accumulations in fp32, policy `compact`
    (torch/nn/modules/linear_cross_entropy.py). Autocast knows nothing of it: the head computes in the weights' type.
    """
    logits = Tensor("logits of a chunk", ("C", "V"), logits_dtype(x.dtype))
    maxima = Tensor("largest logits", ("C",), logits.dtype)
    ignored, factors = Tensor("ignored", TOKENS, DType.BOOL), Tensor("loss weights", TOKENS, DType.FP32)
    labels = Tensor("target without ignored", TOKENS, DType.INT64)
    buffers = [logits, maxima, ignored, labels, factors]
    # The engine hands the node zeros for the outputs nobody used: the gradients made in forward.
    zeros = (x, weight) if facts.trained else (x,)
    zeros = tuple(_temporary(like(tensor, f"zeros like ∂{tensor.name}")) for tensor in zeros)
    yield Row(name="empty", reads=(), writes=(logits, maxima))
    yield _node("linear_cross_entropy", x, weight, loss, saved=False, temporaries=zeros)
    not_ignored = like(ignored, "not ignored")
    yield Row(name="where", reads=(target,), writes=(ignored, labels, factors), temporaries=(not_ignored,))
    scalars = tuple(Tensor(f"{name} of loss weights", (), DType.FP32) for name in ("sum", "sign", "negative", "choice"))
    yield Row(name="mean", reads=(factors,), temporaries=scalars)
    if x.dtype is not DType.FP32 and facts.trained:
        buffers.append(Tensor("hidden states of a chunk in fp32", ("C", "H"), DType.FP32))
        yield Row(name="empty", reads=(), writes=(buffers[-1],))
    left: tuple[Tensor | None, ...] = (None, None, None)
    for which in _chunks(facts):
        rows, left = _torch_chunk(x, weight, logits, labels, which, facts, left)
        yield from rows
    if x.dtype is DType.FP16:
        yield Row(name="to", reads=(), temporaries=(_temporary(loss),))
    yield frame(*buffers, *filter(None, left))


def _torch_chunk(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    labels: Tensor,
    which: str,
    facts: LinearLoss,
    left: tuple[Tensor | None, ...],
) -> tuple[list[Row], tuple[Tensor | None, ...]]:
    """One turn of the loop, and what its variables hold after it; those of the turn before hold `left` until each is
    set again."""
    tokens = CHUNKS[which]
    sums_before, lowered_before, scaled_before = (() if tensor is None else (tensor,) for tensor in left)
    picked = Tensor("logits of targets", tokens, logits.dtype)
    in_fp32 = (like(picked, "logits of targets in fp32", dtype=DType.FP32),) if logits.dtype is DType.FP16 else ()
    product = Tensor("share of the loss", (), DType.FP32)
    sums = Tensor(f"sums of the {which} chunk", tokens, DType.FP32)
    rows = [
        Row(name="gather", reads=(logits, labels), temporaries=(picked, *(in_fp32 or (product,)))),
        Row(name="sum", reads=(logits, *sums_before), writes=(sums,)),
        Row(name="dot", reads=(sums,), temporaries=(product,)),
    ]
    lowered = scaled = None
    if x.dtype is not logits.dtype:
        lowered = Tensor(f"logits of the {which} chunk, rounded", (*tokens, "V"), x.dtype)
        rows.append(Row(name="to", reads=(logits, *lowered_before), writes=(lowered,)))
    of_targets = [Tensor("weight rows of targets", (*tokens, "H"), x.dtype)]
    if x.dtype is not DType.FP32:
        of_targets.append(Tensor("loss weights of a chunk, rounded", tokens, x.dtype))
    rows.append(Row(name="index_select", reads=(weight, labels), temporaries=tuple(of_targets)))
    if facts.trained and facts.narrow:
        scaled = Tensor(f"hidden states of the {which} chunk, scaled", (*tokens, "H"), x.dtype)
        rows.append(Row(name="mul", reads=(x, *scaled_before), writes=(scaled,)))
    return rows, (sums, lowered, scaled)


def _chunks(facts: LinearLoss) -> list[str]:
    return list(CHUNKS) if facts.several_chunks else list(CHUNKS)[:1]


def _temporary(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.shape, tensor.dtype, Kind.TEMPORARIES)


def _liger_call(
    x: Tensor, weight: Tensor, target: Tensor, loss: Tensor, facts: LinearLoss, numerics: Numerics
) -> Iterator[Row]:
    """LigerFusedLinearCrossEntropyFunction (liger_kernel 0.8.5, ops/fused_linear_cross_entropy.py) on CUDA from
    compute capability 8.0 on: the Triton kernel turns a chunk's logits into their gradient in place.

    Its products write into buffers where the types agree; autocast casts around each, and in pure fp32 a weight
    gradient of every chunk is made apart and added.
    """
    losses = Tensor("loss by token", TOKENS, DType.FP32)
    counted = Tensor("counted", TOKENS, DType.BOOL)
    number = Tensor("number of targets", (), DType.INT64)
    compared = tuple(_temporary(like(loss, name)) for name in ("one", "∂loss is one", "all are one"))
    yield _node("fused_linear_cross_entropy", x, weight, losses, saved=True, temporaries=compared)
    yield Row(name="ne", reads=(target,), writes=(counted,))
    yield Row(name="sum", reads=(counted,), temporaries=(number,))
    if numerics.autocast:
        for which in _chunks(facts):
            yield from _liger_chunk_under_autocast(x, weight, which, facts, numerics)
    else:
        logits = Tensor("logits of a chunk", ("C", "V"), x.dtype)
        yield Row(name="empty", reads=(), writes=(logits,))
        if facts.trained and x.dtype is DType.FP32:
            yield Row(name="mm", reads=(logits, x), temporaries=(_temporary(like(weight, "∂weight of a chunk")),))
        yield frame(logits)
    yield Row(name="sum", reads=(losses,), writes=(loss,), gradients=(Gradient(of=losses, passes=True),))
    yield frame(losses, counted)


def _liger_chunk_under_autocast(
    x: Tensor, weight: Tensor, which: str, facts: LinearLoss, numerics: Numerics
) -> Iterator[Row]:
    tokens, lower = CHUNKS[which], numerics.compute
    logits = Tensor(f"logits of the {which} chunk", (*tokens, "V"), lower)
    cast_x = () if x.dtype is lower else (Tensor("hidden states of a chunk cast", (*tokens, "H"), lower),)
    turned = () if weight.dtype is lower else (_temporary(like(weight, "weight turned and cast", dtype=lower)),)
    yield Row(name="mm", reads=(x, weight), writes=(logits,), temporaries=(*cast_x, *turned))
    gradient = Tensor("∂hidden states of a chunk", (*tokens, "H"), lower)
    casts, _ = autocast_weight(weight, numerics)
    if facts.trained:
        yield from casts if which == "first" else ()
        yield Row(name="mm", reads=(logits,), temporaries=(gradient,))
        yield Row(name="addmm", reads=(logits, x), temporaries=cast_x)
    else:
        yield Row(name="mm", reads=(logits, weight), temporaries=(*turned, gradient))
