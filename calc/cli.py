"""The command line: `gpucalc`, also `python -m calc`."""

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from typing import NoReturn

from .commands.answer import ANSWERED, complain
from .errors import ConfigError

COMMANDS = {
    "estimate": "Does the step fit, what takes the memory, how many FLOPs.",
    "solve": "The largest size, or the least choice, with which the step fits.",
    "compare": "Up to four scenarios side by side, with their differences.",
    "explain": "Where the numbers come from, and what would change them.",
    "models": "The catalogue's models: which, and in what order.",
    "gpus": "The catalogue's GPUs: which, and in what order.",
    "serve": "Serve the page and the HTTP interface.",
}
"""Each is a module of commands/, loaded when it is the one that is asked: `add_arguments` says what it takes, `run`
answers and returns the exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 answered, 1 does not fit and that was asked, 2 a wrong question."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that cannot show a character gets a question mark, not a traceback.
        sys.stdout.reconfigure(errors="replace")
    try:
        options = _parsed(list(sys.argv[1:] if arguments is None else arguments))
        status = options.run(options)
        sys.stdout.flush()
    except ConfigError as error:
        return complain(str(error))
    except BrokenPipeError:
        # The reader has left; without this Python complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ANSWERED
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(complain(f"{message}; see {self.prog} --help"))

    def flags(self) -> list[str]:
        return [flag for flag in self._option_string_actions if flag.startswith("--")]


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="gpucalc", description="What a training step of a transformer needs: memory, peak, FLOPs.")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    commands = {
        name: subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        for name, text in COMMANDS.items()
    }
    asked = commands.get(arguments[0]) if arguments else None
    if asked is not None:
        command = import_module(f".commands.{arguments[0]}", __package__)
        command.add_arguments(asked)
        asked.set_defaults(run=command.run)
        if asked is commands["explain"]:
            arguments = command.topic_as_flag(arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise _unknown_argument(unknown[0], asked or parser)
    return options


def _unknown_argument(argument: str, parser: _Parser) -> ConfigError:
    near = get_close_matches(argument.split("=")[0], parser.flags(), n=1)
    hint = f"unknown, did you mean {near[0]}?" if near else "unknown, see gpucalc --help"
    return ConfigError("argument", argument, hint)
