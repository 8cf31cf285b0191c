"""How long one `calc.estimate` of Llama-3.1-8B takes in a warm process, its verdict, peak and FLOPs read, reserved
memory not asked for; then how long the simulation of its reserved memory takes.

Every call asks for another micro-batch size, so that no remembered answer is timed.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial

import calc
from calc.reserved import reserved

CALLS, SIMULATIONS = 500, 50
WORKSPACE_BYTES = 32 * 2**20
LLAMA = {"model": "llama-3.1-8b", "gpu": "h100-sxm-80gb"}
QUESTIONS = {
    "defaults": LLAMA,
    "full recomputation": {**LLAMA, "recompute": "full"},
    "LoRA": {**LLAMA, "adapter": {"kind": "lora"}},
}


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def answer(scenario: calc.Scenario) -> tuple[object, ...]:
    """What every caller reads of an estimate, so that nothing of it is left for later."""
    estimate = calc.estimate(scenario)
    memory = estimate.memory
    return memory.fits, memory.headroom_bytes, memory.peak_allocated_bytes, memory.at_peak, estimate.flops.total


def line(name: str, calls: Iterable[Callable[[], object]], target: str) -> str:
    median, *_, slow = statistics.quantiles(map(seconds_of, calls), n=100)[49:99]
    return f"{name:30} median {median * 1e3:7.3f} ms, p99 {slow * 1e3:7.3f} ms  (target: at most {target})"


def simulation(scenario: calc.Scenario) -> Callable[[], object]:
    step = calc.estimate(scenario).step
    return partial(reserved, step, forward_workspace_bytes=WORKSPACE_BYTES, backward_workspace_bytes=WORKSPACE_BYTES)


def main() -> None:
    for name, question in QUESTIONS.items():
        scenarios = [calc.Scenario(**question, micro_batch_size=size) for size in range(1, CALLS + 1)]
        answer(scenarios[0])
        print(line(name, [partial(answer, scenario) for scenario in scenarios], "0.5 ms"))
        print(line(f"{name}: reserved", map(simulation, scenarios[:SIMULATIONS]), "30 ms"))


if __name__ == "__main__":
    main()
