"""`python -m validation measure`: starts workers, one after the other, until one says that it is done.

Imports no torch: that takes seconds, and a worker does it again.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from validation.records import FOLDER
from validation.suites import MEASURED

SUITE_NAMES = ("questions", *MEASURED)
"""In the order in which they are measured: the questions first, which ask for the context of a process that has done
nothing else."""
NEW_PROCESS = 75
"""A worker's exit status when another one should go on."""
FOREVER = float("inf")


def main(arguments: Sequence[str]) -> int:
    """Measures training steps on the first CUDA device; goes on where a run before was stopped."""
    options = parser(main.__doc__).parse_args(arguments)
    until = time.time() + 60 * options.minutes
    command = [sys.executable, "-m", "validation.measure", *arguments, f"--until={until}"]
    while (status := subprocess.run(command, check=False).returncode) == NEW_PROCESS:
        # What this run recorded as an error is not asked once more by its next worker.
        command = [argument for argument in command if argument != "--again"]
    return status


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of a worker and of its supervisor, which passes them on."""
    options = argparse.ArgumentParser(prog="python -m validation measure", description=description)
    options.add_argument("--suite", choices=SUITE_NAMES, help="Default: all, one after the other.")
    options.add_argument("--only", default="", metavar="TEXT", help="Only what has TEXT in its id.")
    options.add_argument("--limit", type=int, help="Only so many of each suite, from its start.")
    options.add_argument("--minutes", type=float, default=FOREVER, help="Start nothing after so many minutes.")
    options.add_argument("--again", action="store_true", help="Also what is recorded as an error.")
    options.add_argument("--records", type=Path, default=FOLDER, help="Folder to write to. Default: %(default)s.")
    options.add_argument("--until", type=float, default=FOREVER, help=argparse.SUPPRESS)
    return options
