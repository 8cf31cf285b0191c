"""`gpucalc compare`."""

import argparse
from itertools import product

from calc.comparison import compare, scenarios_from_objects
from calc.errors import ConfigError
from calc.flags import add_scenario_flags, field_named, given_fields
from calc.json_file import STANDARD_INPUT, read_json_object
from calc.scenario import Scenario, scenario_from_strings

from .answer import ANSWERED, add_json_flag, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A Scenario's flags, and values to vary or further files."""
    parser.usage = (
        f"{parser.prog} MODEL --vary FIELD=VALUE,... [--FLAG VALUE ...] [--json]\n"
        f"       {parser.prog} FILE [FILE ...] [--json]"
    )
    add_json_flag(parser)
    add_scenario_flags(parser)
    parser.add_argument(
        "files", metavar="FILE", nargs="*", help=f"Scenarios as JSON, in place of MODEL; {STANDARD_INPUT} reads one."
    )
    parser.add_argument(
        "--vary",
        metavar="FIELD=VALUE,...",
        action="append",
        default=[],
        type=_variation,
        help="One scenario for each value; given twice, for each pair of values.",
    )


def run(options: argparse.Namespace) -> int:
    answer = compare(_scenarios(options))
    if options.json:
        write_json(answer.to_dict())
    else:
        from calc.report.estimates import print_comparison

        print_comparison(answer)
    return ANSWERED


def _scenarios(options: argparse.Namespace) -> list[Scenario]:
    """The Scenarios to compare: one a file, or one for each combination of the varied values."""
    if not options.vary:
        if options.fields or options.scenario:
            name, value = options.fields[0] if options.fields else ("scenario", options.scenario)
            raise ConfigError(name, value, "needs --vary; files hold whole scenarios")
        return scenarios_from_objects([read_json_object(path, "scenario") for path in _given_files(options)])
    if options.files or options.scenario:
        raise ConfigError("vary", "=".join(options.vary[0]), "varies one MODEL and its flags, not files")
    choices = [[(name, value) for value in values.split(",")] for name, values in options.vary]
    return [scenario_from_strings([*given_fields(options), *chosen]) for chosen in product(*choices)]


def _given_files(options: argparse.Namespace) -> list[str]:
    return [options.model, *options.files] if options.model else []


def _variation(text: str) -> tuple[str, str]:
    """`micro-batch-size=1,2` → ("micro_batch_size", "1,2")."""
    name, equals, values = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} should be FIELD=VALUE,VALUE,...")
    return field_named(name), values
