"""`gpucalc solve`."""

import argparse

from calc.flags import add_scenario_flags, field_named, flag, scenario_from_options
from calc.solution import Maximise, Minimise, solve

from .answer import ANSWERED, DOES_NOT_FIT, add_json_flag, add_oom_flag, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} MODEL (--maximise FIELD | --minimise FIELD) [--FLAG VALUE ...] [--json]"
    for name, words in (("maximise", Maximise), ("minimise", Minimise)):
        parser.add_argument(flag(name), type=field_named, metavar="FIELD", help=f"One of {', '.join(words)}.")
    parser.add_argument(
        "--max-seconds-per-token",
        type=float,
        metavar="SECONDS",
        help="Inference: a token of the output takes at most so long.",
    )
    add_oom_flag(parser)
    add_json_flag(parser)
    add_scenario_flags(parser)


def run(options: argparse.Namespace) -> int:
    answer = solve(
        scenario_from_options(options),
        maximise=options.maximise,
        minimise=options.minimise,
        max_seconds_per_token=options.max_seconds_per_token,
    )
    if options.json:
        write_json(answer.to_dict())
    else:
        from calc.report.estimates import print_solution

        print_solution(answer)
    return DOES_NOT_FIT if options.fail_if_oom and answer.value is None else ANSWERED
