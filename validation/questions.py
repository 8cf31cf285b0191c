"""What no CPU can say: small probes of one GPU and one version of the libraries, each a record of its own.

Bytes are torch's requested bytes, which no rounding and no free block changes.
"""

import gc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from torch.nn.functional import layer_norm, scaled_dot_product_attention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from validation import cuda
from validation.attention_backends import BACKENDS, restricted_to
from validation.cases import Case, as_object, case, config_of
from validation.machine import Machine
from validation.models import Job, build_job
from validation.step import forward, training_step

DEVICE = "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One of docs/validation.md's open questions; `answer` gives numbers and words that JSON takes."""

    id: str
    answer: Callable[[Machine], dict[str, Any]]
    scenario: ClassVar[dict[str, Any]] = {}
    holdout: ClassVar[bool] = False


def bytes_of(run: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """The result of `run`, and what it had requested at most and at its end beyond what was there before."""
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    torch.cuda.reset_peak_memory_stats()
    result = run()
    after = torch.cuda.memory_stats()
    return result, {
        "peak_bytes": after["requested_bytes.all.peak"] - before,
        "end_bytes": after["requested_bytes.all.current"] - before,
    }


def job_of(asked: Case) -> Job:
    scenario = as_object(asked.scenario)
    kernel = "eager" if scenario.attention == "eager" else "sdpa"
    return build_job(scenario, config_of(asked.scenario), DEVICE, kernel)


# --- the context, and what libraries leave allocated --------------------------------------------------------------

WARM_STEPS = [
    case("distilgpt2", 1, 256, attention="flash"),
    case("distilgpt2", 1, 256, attention="eager", precision="fp32", optimizer="adamw-fused"),
    case("smollm2-135m", 1, 256, attention="flash", precision="bf16"),
    case("smollm2-135m", 1, 256, attention="auto", precision="fp16-autocast", recompute="full"),
]


def context(machine: Machine) -> dict[str, Any]:
    """Device bytes less torch's reserved bytes: bare, after one step of several kinds, after a profile."""
    sizes = [{"after": "start", **context_now(machine)}]
    for asked in WARM_STEPS:
        job = job_of(asked)
        training_step(job, lambda _: nullcontext())
        del job
        sizes.append({"after": asked.id, **context_now(machine)})
    cuda.profiled(lambda: None)
    sizes.append({"after": "profiler", **context_now(machine)})
    return {"bare_bytes": machine.facts["context_bytes"], "sizes": sizes}


def context_now(machine: Machine) -> dict[str, int]:
    """By NVML for this process, and by cudaMemGetInfo for all of them."""
    idle = machine.idle()
    free, total = torch.cuda.mem_get_info()
    return idle | {"device_used_less_reserved_bytes": total - free - idle["reserved_bytes"]}


def cublas_workspaces(machine: Machine) -> dict[str, Any]:
    """What the first products left, and what is left allocated when whole steps have gone."""
    machine.idle()
    for asked in WARM_STEPS:
        training_step(job_of(asked), lambda _: nullcontext())
    gc.collect()
    return machine.workspaces | {"left_by_steps_bytes": torch.cuda.memory_allocated()}


# --- gradients that meet ------------------------------------------------------------------------------------------

WIDE_VOCABULARY = {
    "model_type": "llama",
    "vocab_size": 50_000,
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
}
"""Nothing in it is nearly as large as the embedding."""
ADDITIONS = {"aten::add_": "in place", "aten::add": "into a third"}


def tied_embedding(_: Machine) -> dict[str, Any]:
    """Backward's bytes, and where the engine adds gradients, with and without a tied head, for a first micro-batch and
    for one whose gradients are added to existing ones."""
    found = {}
    for precision, tied in product(("fp32", "bf16", "bf16-autocast"), (True, False)):
        config = WIDE_VOCABULARY | {"tie_word_embeddings": tied}
        job = job_of(case(config, 1, 8, attention="eager", precision=precision, optimizer="sgd"))
        first, second = backward_bytes(job), backward_bytes(job)
        job.model.zero_grad()
        found[f"{precision}, {'tied' if tied else 'untied'}"] = {
            "embedding_gradient_bytes": next(job.model.parameters()).nbytes,
            "first_micro_batch": first,
            "second_micro_batch": second,
            "additions": additions(job),
        }
    return found


def backward_bytes(job: Job) -> dict[str, int]:
    """Of one micro-batch's backward; `peak_over_end_bytes` holds the gradients that meet and are not kept."""
    loss = forward(job).loss
    _, seen = bytes_of(loss.backward)
    return seen | {"peak_over_end_bytes": seen["peak_bytes"] - seen["end_bytes"]}


def additions(job: Job) -> dict[str, dict[str, int]]:
    """How often the autograd engine adds gradients in place and into a third tensor in one backward, by shape."""
    loss = forward(job).loss
    found: dict[str, Counter[str]] = {how: Counter() for how in ADDITIONS.values()}
    for event in engine_additions(cuda.kineto_events(loss.backward)):
        found[ADDITIONS[event.name()]][str(event.shapes()[0])] += 1
    return {how: dict(shapes) for how, shapes in found.items()}


def engine_additions(events: Iterable[Any]) -> Iterator[Any]:
    """Of a profile's events, by start: the additions that the engine makes, and no node."""
    calls: dict[int, list[Any]] = defaultdict(list)
    for event in events:
        inside = calls[event.start_thread_id()]
        while inside and inside[-1].end_ns() <= event.start_ns():
            inside.pop()
        if inside and event.name() in ADDITIONS and "evaluate_function" in inside[-1].name():
            yield event
        inside.append(event)


# --- rotary positions ---------------------------------------------------------------------------------------------

ROTARY_SHAPES = {"q": (1, 2048, 32, 128), "k": (1, 2048, 8, 128)}
"""[B, S, N, D], as the projections leave them."""
ROTARY_DTYPES = [
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32),
]
"""Of q and k, and of cos and sin: under autocast those are fp32."""


def rotary(_: Machine) -> dict[str, Any]:
    """Bytes of apply_rotary_pos_emb and of its backward."""
    return {f"{name(x)} with {name(positions)} positions": rotary_bytes(x, positions) for x, positions in ROTARY_DTYPES}


def rotary_bytes(dtype: torch.dtype, positions_dtype: torch.dtype) -> dict[str, Any]:
    q, k = (heads(shape, dtype) for shape in ROTARY_SHAPES.values())
    cos, sin = (torch.zeros(1, q.shape[2], q.shape[3], dtype=positions_dtype, device=DEVICE) for _ in range(2))
    turned, forward_bytes = bytes_of(lambda: apply_rotary_pos_emb(q, k, cos, sin))
    gradients = [torch.zeros_like(each) for each in turned]
    _, backward = bytes_of(lambda: torch.autograd.grad(turned, (q, k), gradients, retain_graph=True))
    return {"q_bytes": q.nbytes, "k_bytes": k.nbytes, "forward": forward_bytes, "backward": backward}


def heads(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """[B, N, S, D] over memory in [B, S, N, D] order, as transformers' models view their projections."""
    return torch.zeros(shape, dtype=dtype, device=DEVICE, requires_grad=True).transpose(1, 2)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- attention kernels --------------------------------------------------------------------------------------------

HEAD_DIMS = (64, 80, 128, 256)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ATTENTIONS: dict[str, dict[str, Any]] = {
    "causal": {},
    "causal, grouped": {"key_value_heads": 2},
    "causal, dropout 0.1": {"dropout": 0.1},
    "masked": {"masked": True},
}
WORKSPACE_SHAPES = [(8, 1024, 12, 64, 12), (1, 4096, 32, 128, 32), (2, 2048, 32, 128, 8)]
"""Batch, sequence, heads, head size, key/value heads."""


def attention_kernels(_: Machine) -> dict[str, Any]:
    """The backend that is chosen by type, head size and mask; and of each backend the bytes, workspace included."""
    chosen = {
        f"{name(dtype)}, head size {head_dim}, {of_what}": or_refusal(backend_of, dtype, head_dim, **setting)
        for dtype, head_dim, (of_what, setting) in product(DTYPES, HEAD_DIMS, ATTENTIONS.items())
    }
    sizes = {
        f"{backend}, [B, S, N, D] = {list(shape)}, {key_value_heads} key/value heads": or_refusal(
            attention_bytes, backend, shape, key_value_heads
        )
        for backend, (*shape, key_value_heads) in product(BACKENDS, WORKSPACE_SHAPES)
    }
    return {"chosen": chosen, "bytes": sizes}


def backend_of(
    dtype: torch.dtype, head_dim: int, *, key_value_heads: int = 8, dropout: float = 0.0, masked: bool = False
) -> str:
    """The kernel of one call that also wants gradients, with transformers' arguments."""
    shape = (2, 256, 8, head_dim)
    mask = torch.zeros(2, 1, shape[1], shape[1], dtype=dtype, device=DEVICE) if masked else None
    events = cuda.kineto_events(lambda: attend(shape, key_value_heads, dtype, dropout=dropout, mask=mask))
    return ", ".join(cuda.sdpa_backends(events))


def attention_bytes(backend: str, shape: Iterable[int], key_value_heads: int) -> dict[str, Any]:
    """Bytes of one bf16 call and of its backward, q, k and v left out."""
    with restricted_to(backend):
        q, k, v = inputs(shape, key_value_heads, torch.bfloat16)
        out, forward_bytes = bytes_of(lambda: attention(q, k, v))
        gradient = torch.zeros_like(out)
        _, backward = bytes_of(lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True))
    return {"out_bytes": out.nbytes, "forward": forward_bytes, "backward": backward}


def or_refusal(run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What `run` gives, or why the backend does not take it."""
    try:
        return run(*arguments, **options)
    except RuntimeError as error:
        return {"refused": str(error).partition("\n")[0]}


def attend(shape: Iterable[int], key_value_heads: int, dtype: torch.dtype, **options: Any) -> None:
    attention(*inputs(shape, key_value_heads, dtype), **options).sum().backward()


def inputs(shape: Iterable[int], key_value_heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    batch, sequence, num_heads, head_dim = shape
    return [heads((batch, sequence, each, head_dim), dtype) for each in (num_heads, key_value_heads, key_value_heads)]


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, dropout: float = 0.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    grouped = k.shape[1] != q.shape[1]
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=grouped
    )


# --- layer norm ---------------------------------------------------------------------------------------------------


def layer_norm_statistics(_: Machine) -> dict[str, Any]:
    """The types in which LayerNorm keeps mean and reciprocal deviation, by its input's type."""
    found = {}
    for dtype in DTYPES:
        x = torch.zeros(4, 64, dtype=dtype, device=DEVICE, requires_grad=True)
        weight, bias = (torch.zeros(64, dtype=dtype, device=DEVICE) for _ in range(2))
        node: Any = layer_norm(x, (64,), weight, bias).grad_fn
        found[name(dtype)] = {"mean": name(node._saved_result1.dtype), "rstd": name(node._saved_result2.dtype)}
    return found


QUESTIONS = [
    Question(id="context", answer=context),
    Question(id="cublas-workspaces", answer=cublas_workspaces),
    Question(id="tied-embedding", answer=tied_embedding),
    Question(id="rotary", answer=rotary),
    Question(id="attention-kernels", answer=attention_kernels),
    Question(id="layer-norm", answer=layer_norm_statistics),
]
"""The context first: each of the others lets it grow."""
