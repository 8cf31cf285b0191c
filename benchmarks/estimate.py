"""How long one `calc.estimate` of Llama-3.1-8B takes in a warm process, reserved memory not asked for.

Every call asks for another micro-batch size, so that no remembered answer is timed.
"""

import statistics
import time

import calc

CALLS = 500
LLAMA = {"model": "llama-3.1-8b", "gpu": "h100-sxm-80gb"}
QUESTIONS = {
    "defaults": LLAMA,
    "full recomputation": {**LLAMA, "recompute": "full"},
    "LoRA": {**LLAMA, "adapter": {"kind": "lora"}},
}


def seconds_of(scenario: calc.Scenario) -> float:
    start = time.perf_counter()
    calc.estimate(scenario)
    return time.perf_counter() - start


def main() -> None:
    for name, question in QUESTIONS.items():
        scenarios = [calc.Scenario(**question, micro_batch_size=size) for size in range(1, CALLS + 1)]
        calc.estimate(scenarios[0])
        median, *_, slow = statistics.quantiles(map(seconds_of, scenarios), n=100)[49:99]
        print(f"{name:20} median {median * 1e3:.3f} ms, p99 {slow * 1e3:.3f} ms  (target: at most 0.5 ms)")


if __name__ == "__main__":
    main()
