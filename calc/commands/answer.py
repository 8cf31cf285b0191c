"""How a command answers: an exit status, JSON on standard output, one line on standard error."""

import argparse
import json
import sys
from typing import Any

ANSWERED, DOES_NOT_FIT, WRONG_QUESTION = 0, 1, 2


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print JSON and nothing else.")


def add_oom_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fail-if-oom", action="store_true", help="Exit with status 1 when it does not fit.")


def write_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def complain(message: str) -> int:
    sys.stderr.write(f"gpucalc: {message}\n")
    return WRONG_QUESTION
