"""What vLLM's own memory profile said in published logs, beside the engine's formulas. Not measured here: figures with
their source (engine_profiles.json), of versions whose sampling differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calc import Scenario, load_model
from calc.deployment import rank_of
from calc.dtype import DType
from calc.engine import SAMPLED, Engine
from calc.estimation import estimate, estimate_plan
from calc.hardware import gpu_named
from calc.ledger import Kind, Tensor
from calc.lifetimes import Event
from calc.scenario import Task

FIGURES: Mapping[str, Mapping[str, Any]] = json.loads(
    Path(__file__).with_name("engine_profiles.json").read_text(encoding="utf-8")
)
SORTING = "0.6.5"
"""The version whose sampler sorts all logits."""
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Reproduced:
    """What vLLM calls weights and PyTorch's activation peak, as the formulas have them."""

    weights_gib: float
    torch_peak_gib: float


def reproduced(figure: Mapping[str, Any]) -> Reproduced:
    """Weights with the rotary table, which loading makes; of the profiled pass all that PyTorch's allocator hands out,
    cuBLAS's workspace among it."""
    scenario = Scenario(task=Task.INFERENCE, page_size=16, **figure["scenario"])
    answer = estimate(scenario)
    architecture = load_model(scenario.model)
    if figure["ranks"] > 1:
        rank = rank_of(architecture, figure["ranks"])
        assert rank is not None
        answer = estimate_plan(rank, answer.step.workload, answer.step.plan, gpu_named(scenario.gpu or ""))
    assert answer.engine is not None
    engine = answer.engine
    if figure["version"] == SORTING:
        sampler = tuple(sorting_sampler(architecture.vocab_size, engine.plan.numerics.weights))
        engine = Engine(engine.architecture, engine.prefill, engine.output_length, engine.gpu, sampler)
    own = engine.persistent_bytes
    workspace = answer.memory.library_workspace_bytes or 0
    weights = own[Kind.PARAMETERS] + own[Kind.BUFFERS]
    return Reproduced(weights / GIB, (engine.activation_peak_bytes + workspace) / GIB)


def sorting_sampler(vocab_size: int, weights: DType) -> list[Event]:
    """Sampler.forward of vLLM 0.6.5 up to where it holds the most: _apply_top_k_top_p sorts the logits, which rank 0
    has of the whole vocabulary. torch.sort of 128 rows or more of fewer than a million numbers
    (segmented_sort_pairs in ATen/native/cuda/SortStable.cu) numbers all elements and gives cub keys and values to sort
    from and to; cub's radix sort takes room for both once more. What follows the sort holds 8 fp32 tensors of this
    size at most, the sort 9."""
    shape = (SAMPLED, vocab_size)

    def made(name: str, dtype: DType) -> Tensor:
        return Tensor(name, shape, dtype, Kind.TEMPORARIES)

    kept = [Tensor("last hidden states", (SAMPLED, "H"), weights, Kind.TEMPORARIES), made("logits", weights)]
    kept += [made("logits in fp32", DType.FP32), made("sorted", DType.FP32), made("indices", DType.INT64)]
    inside = [made("numbers", DType.INT64), made("cub's keys", DType.FP32), made("cub's values", DType.INT64)]
    all_of_them = [*kept, *inside]
    return [*((tensor, True) for tensor in all_of_them), *((tensor, False) for tensor in all_of_them)]
