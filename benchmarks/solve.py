"""How long `calc.solve` and `calc.compare` take in a warm process: the slowest of a few models, each asked anew.

Every call asks about another micro-batch size or sequence length, so that no remembered answer is timed.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import calc
from calc.solution import OF_INFERENCE, Maximise, Minimise

CALLS = 20
MODELS = ("gpt2", "llama-3.1-8b", "qwen3-32b", "gpt3-175b")
GOAL_SECONDS = 0.05


def scenarios_of(model: str) -> list[calc.Scenario]:
    fields: dict[str, Any] = {"model": model, "gpu": "b200-sxm-180gb", "precision": "bf16", "adapter": {"rank": 8}}
    return [calc.Scenario(**fields, micro_batch_size=size, sequence_length=256 + size) for size in range(1, CALLS + 1)]


def median_seconds(function: Callable[[calc.Scenario], object], scenarios: Sequence[calc.Scenario]) -> float:
    function(scenarios[0])
    times = []
    for scenario in scenarios:
        start = time.perf_counter()
        function(scenario)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    functions: dict[str, Callable[[calc.Scenario], object]] = {
        f"maximise {sought}": lambda scenario, sought=sought: calc.solve(scenario, maximise=sought)
        for sought in Maximise
        if sought not in OF_INFERENCE
    }
    for least in Minimise:
        functions[f"minimise {least}"] = lambda scenario, least=least: calc.solve(scenario, minimise=least)
    functions["compare four"] = lambda scenario: calc.compare([scenario] * 4)
    for name, function in functions.items():
        slowest = max(median_seconds(function, scenarios_of(model)) for model in MODELS)
        print(f"{name:26} {slowest * 1e3:5.1f} ms  (target: at most {GOAL_SECONDS * 1e3:.0f} ms)")


if __name__ == "__main__":
    main()
