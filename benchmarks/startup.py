"""What a new process costs: `import calc` beside importing pydantic, and a whole `gpucalc estimate ... --json`.

The two imports are timed in turn, each in its own interpreter, so that their ratio holds on a busy machine too.
"""

import statistics
import subprocess
import sys
import time

RUNS = 21
# What pydantic itself loads only when its names are asked for is counted as importing pydantic.
IMPORT_PYDANTIC = "from pydantic import BaseModel, Field, model_validator"
IMPORT_CALC = "import calc"
ESTIMATE = [sys.executable, "-m", "calc", "estimate", "llama-3.1-8b", "--gpu", "h100-sxm-80gb", "--json"]


def import_seconds(statement: str) -> float:
    script = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.check_output([sys.executable, "-c", script]))


def process_seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    pairs = [(import_seconds(IMPORT_CALC), import_seconds(IMPORT_PYDANTIC)) for _ in range(RUNS)]
    calc, pydantic = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(calc / pydantic for calc, pydantic in pairs)
    whole = statistics.median(process_seconds(ESTIMATE) for _ in range(RUNS))
    print(f"import calc             {calc * 1e3:7.1f} ms")
    print(f"import pydantic         {pydantic * 1e3:7.1f} ms")
    print(f"ratio                   {ratio:7.2f}     (target: at most 1.5)")
    print(f"gpucalc estimate --json {whole * 1e3:7.1f} ms  (target: at most 500)")


if __name__ == "__main__":
    main()
