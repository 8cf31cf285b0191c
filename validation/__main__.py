"""python -m validation: trace, measure, operators, regress, report, published."""

import argparse
import json
import sys
from collections.abc import Sequence

DONE, WRONG_QUESTION = 0, 2


def main(arguments: Sequence[str]) -> int:
    """Runs one command; each imports only what it needs: regress no torch, measure nothing of calc."""
    commands = {
        "trace": _trace,
        "measure": _measure,
        "operators": _operators,
        "regress": _regress,
        "report": _report,
        "published": _published,
    }
    parser = argparse.ArgumentParser(prog="python -m validation", description=__doc__)
    parser.add_argument("command", choices=commands)
    chosen = parser.parse_args(arguments[:1])
    return commands[chosen.command](arguments[1:])


def _trace(arguments: Sequence[str]) -> int:
    """Runs a real model's training step on fake tensors and prints what it takes, as JSON."""
    from calc.errors import ConfigError
    from calc.flags import add_scenario_flags, scenario_from_options
    from validation import tracing
    from validation.refusals import CannotRun
    from validation.suites import SUITES

    parser = argparse.ArgumentParser(prog="python -m validation trace", description=_trace.__doc__)
    add_scenario_flags(parser)
    parser.add_argument("--record", action="store_true", help="Append it to the records too.")
    parser.add_argument("--suite", choices=SUITES, help="Record every case of a suite that is not recorded yet.")
    options = parser.parse_args(arguments)
    try:
        if options.suite:
            tracing.record_suite(SUITES[options.suite])
        else:
            record = tracing.record_of(tracing.case_of(scenario_from_options(options)))
            print(json.dumps(record.measured, indent=2))
            if options.record:
                record.append_to(tracing.TRACES)
    except (ConfigError, CannotRun) as error:
        print(f"trace: {error}", file=sys.stderr)
        return WRONG_QUESTION
    return DONE


def _measure(arguments: Sequence[str]) -> int:
    from validation import supervisor

    return supervisor.main(arguments)


def _operators(arguments: Sequence[str]) -> int:
    from validation import operator_times

    return operator_times.main(arguments)


def _regress(arguments: Sequence[str]) -> int:
    """Compares the formulas with every record; status 1 where one is beyond its bound."""
    from validation import regress

    argparse.ArgumentParser(prog="python -m validation regress", description=_regress.__doc__).parse_args(arguments)
    return regress.main()


def _report(arguments: Sequence[str]) -> int:
    """Writes the accuracy table: docs/accuracy.md, its short form in README.md, and the estimates' `accuracy`."""
    from validation import report

    argparse.ArgumentParser(prog="python -m validation report", description=_report.__doc__).parse_args(arguments)
    return report.main()


def _published(arguments: Sequence[str]) -> int:
    """Compares published measurements with ours: docs/published.md, README.md, the catalogue's published.json."""
    from validation.published import page

    argparse.ArgumentParser(prog="python -m validation published", description=_published.__doc__).parse_args(arguments)
    return page.main()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
