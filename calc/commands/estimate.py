"""`gpucalc estimate`."""

import argparse

from calc.estimation import estimate
from calc.flags import add_scenario_flags, scenario_from_options

from .answer import ANSWERED, DOES_NOT_FIT, add_json_flag, add_oom_flag, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} MODEL [--FLAG VALUE ...] [--json]"
    parser.add_argument(
        "--reserved", action="store_true", help="Put the simulated allocator's bytes into the JSON too."
    )
    add_oom_flag(parser)
    add_json_flag(parser)
    add_scenario_flags(parser)


def run(options: argparse.Namespace) -> int:
    answer = estimate(scenario_from_options(options))
    if options.json:
        write_json(answer.to_dict(reserved=options.reserved))
    else:
        from calc.report.estimates import print_estimate  # rich takes longer to import than an estimate takes

        print_estimate(answer)
    return DOES_NOT_FIT if options.fail_if_oom and answer.memory.fits is False else ANSWERED
