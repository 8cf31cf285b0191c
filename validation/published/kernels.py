"""The calls that Liger-Kernel's benchmarks time and measure, in modules of torch and transformers, on fake tensors.

Written after benchmark/scripts of Liger-Kernel 0.2.1 (fused_linear_cross_entropy: 0.4.2): which tensors the script
holds, what it calls. Its `_test_memory` takes the median of ten calls, each with the peak reset before it; here the
second call counts, which finds the gradients of the first, as the later ones do. Nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from calc.device_memory import CUBLAS_WORKSPACE_BYTES
from calc.scenario import Attention
from validation import liger
from validation.as_on_cuda import as_on_cuda, only_reference_counting
from validation.published.sources import Comparison
from validation.quick_fakes import QuickFakeTensorMode
from validation.recorder import StepRecorder
from validation.step import Phase

CALLS = 2


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a benchmark: `forward` gives what `backward` takes."""

    forward: Callable[[], Any]
    backward: Callable[[Any], None]
    held: Any
    """What lives beside the call, the other provider's module among it."""


def peak_bytes(kernel: str, mode: str, **sizes: Any) -> int:
    """torch.cuda.max_memory_allocated() of one call in a benchmark of `kernel`: `full`, `forward` or `backward`."""
    recorder = StepRecorder()
    fakes = QuickFakeTensorMode(allow_non_fake_inputs=True)
    with fakes, as_on_cuda(Attention.AUTO), only_reference_counting(), recorder:
        call = KERNELS[kernel](**sizes)
        output = call.forward() if mode == "backward" else None
        for recorder.step in range(1, CALLS + 1):
            if mode != "backward":
                with recorder.during(Phase.FORWARD):
                    output = call.forward()
            if mode != "forward":
                with recorder.during(Phase.BACKWARD):
                    call.backward(output)
            if mode != "backward":
                output = None
    return max(phase.peak_allocated_bytes for phase in recorder.ended[CALLS])


def cross_entropy(V: int, BT: int) -> Call:
    logits = torch.randn(BT, V, requires_grad=True)
    target = torch.zeros(BT, dtype=torch.int64)
    return Call(lambda: nn.functional.cross_entropy(logits, target), Tensor.backward, (logits, target))


def rms_norm(H: int, M: int) -> Call:
    """Weights in fp32 on inputs in bf16: the result is fp32."""
    theirs, other = LlamaRMSNorm(H), LlamaRMSNorm(H)
    return _norm(theirs, other, torch.randn(M, H, dtype=torch.bfloat16))


def layer_norm(N: int, M: int) -> Call:
    return _norm(nn.LayerNorm(N), nn.LayerNorm(N), torch.randn(M, N))


def _norm(module: nn.Module, other: nn.Module, x: Tensor) -> Call:
    gradient = torch.randn_like(x)
    x.requires_grad_(True)
    return Call(lambda: module(x), lambda y: y.backward(gradient, retain_graph=True), (module, other, x, gradient))


def mlp(B: int, T: int, H: int, intermediate_size: int, act: str, emulated: bool = False) -> Call:
    """LlamaMLP in bf16, or with Liger's SiLU."""
    config = LlamaConfig(hidden_size=H, intermediate_size=intermediate_size, hidden_act=act)
    x = torch.randn(B, T, H, dtype=torch.bfloat16, requires_grad=True)
    module = LlamaMLP(config).to(torch.bfloat16)
    if emulated:
        liger.emulate(SimpleNamespace(modules=lambda: [module]))  # pyright: ignore[reportArgumentType]
    return Call(lambda: module(x), lambda y: y.backward(torch.randn_like(y), retain_graph=True), (x, module))


def rope(H: int, T: int, emulated: bool = False) -> Call:
    """32 query and 8 key heads of H / 32; q and k are views of tensors laid out by token."""
    heads, kv_heads = 32, 8
    config = LlamaConfig(hidden_size=H, num_attention_heads=heads)
    rotary = LlamaRotaryEmbedding(config)
    q, k = (
        torch.randn(1, T, n, H // heads, dtype=torch.bfloat16, requires_grad=True).transpose(1, 2)
        for n in (heads, kv_heads)
    )
    gradients = torch.randn_like(q), torch.randn_like(k)
    positions = torch.arange(T).unsqueeze(0)
    cos, sin = rotary(k, positions)
    turn = liger.rotary_positions if emulated else apply_rotary_pos_emb

    def backward(outputs: Any) -> None:
        torch.autograd.grad(outputs, (q, k), gradients, allow_unused=True, retain_graph=True)

    return Call(lambda: turn(q, k, cos, sin), backward, (rotary, q, k, gradients, positions, cos, sin))


def embedding(V: int, D: int, B: int, T: int) -> Call:
    module, other = nn.Embedding(V, D), nn.Embedding(V, D)
    ids = torch.zeros(B, T, dtype=torch.int64)
    return Call(lambda: module(ids), lambda y: y.backward(torch.randn_like(y)), (module, other, ids))


def linear_cross_entropy(BT: int, H: int, V: int) -> Call:
    head, other = (nn.Linear(H, V, bias=False, dtype=torch.bfloat16) for _ in range(2))
    x = torch.randn(BT, H, dtype=torch.bfloat16, requires_grad=True)
    target = torch.zeros(BT, dtype=torch.int64)
    return Call(lambda: nn.functional.cross_entropy(head(x), target), Tensor.backward, (head, other, x, target))


KERNELS: dict[str, Callable[..., Call]] = {
    each.__name__: each for each in (cross_entropy, rms_norm, layer_norm, mlp, rope, embedding, linear_cross_entropy)
}


def compared(figure: dict[str, Any]) -> Comparison:
    """A figure `beyond` another of the same process is predicted from that one, which has what the process held."""
    ours = _our_bytes(figure)
    if reference := figure.get("beyond"):
        ours += _bytes(reference["published_mib"]) - _our_bytes(figure | reference)
    return Comparison(figure["setup"], _bytes(figure["published_mib"]), ours)


def _our_bytes(figure: dict[str, Any]) -> int:
    """With a cuBLAS workspace of each thread that had multiplied by then."""
    sizes = figure["sizes"] | ({"emulated": True} if figure.get("emulated") else {})
    return (
        peak_bytes(figure["kernel"], figure["mode"], **sizes)
        + figure.get("cublas_workspaces", 0) * CUBLAS_WORKSPACE_BYTES
    )


def _bytes(mebibytes: float) -> int:
    return round(mebibytes * 2**20)
