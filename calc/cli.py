"""The command line: `gpucalc`, also `python -m calc`."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from io import TextIOWrapper
from typing import Any, NoReturn

from .advice import advise
from .comparison import compare
from .errors import ConfigError
from .estimation import estimate
from .explain import formulas
from .flags import (
    add_comparison_arguments,
    add_listing_flags,
    add_scenario_flags,
    field_named,
    flag,
    listing_from_options,
    scenario_fields,
    scenario_from_options,
    scenarios_from_options,
)
from .inventory import largest_at_peak
from .lengths import LENGTHS_FILE, length_report, read_lengths
from .listing import GpuListing, ModelListing, list_gpus, list_models
from .solution import Maximise, Minimise, solve
from .tradeoff import recompute_tradeoffs

ANSWERED, DOES_NOT_FIT, WRONG_QUESTION = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 answered, 1 does not fit and that was asked, 2 a wrong question."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that cannot show a character gets a question mark, not a traceback.
        sys.stdout.reconfigure(errors="replace")
    try:
        options, unknown = _parser().parse_known_args(_topic_as_flag(sys.argv[1:] if arguments is None else arguments))
        if unknown:
            raise _unknown_argument(unknown[0])
        status = options.run(options)
        sys.stdout.flush()
    except ConfigError as error:
        return _complain(str(error))
    except BrokenPipeError:
        # The reader has left; without this Python complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ANSWERED
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"{message}; see {self.prog} --help"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gpucalc", description="What a training step of a transformer needs: memory, peak, FLOPs.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    estimating = command("estimate", _estimate, "Does the step fit, what takes the memory, how many FLOPs.")
    solving = command("solve", _solve, "The largest size, or the least choice, with which the step fits.")
    for name, words in (("maximise", Maximise), ("minimise", Minimise)):
        solving.add_argument(flag(name), type=field_named, metavar="FIELD", help=f"One of {', '.join(words)}.")
    estimating.add_argument(
        "--reserved", action="store_true", help="Put the simulated allocator's bytes into the JSON too."
    )
    for each in (estimating, solving):
        each.add_argument("--fail-if-oom", action="store_true", help="Exit with status 1 when it does not fit.")
    comparing = command("compare", _compare, "Up to four scenarios side by side, with their differences.")
    explaining = command("explain", _explain, "Where the numbers come from, and what would change them.")
    explaining.add_argument("--topic", choices=TOPICS, default="formulas", help=_topics())
    explaining.add_argument("--lengths", metavar="FILE", help=f"Samples' lengths in tokens: {LENGTHS_FILE}.")
    models = command("models", _models, "The catalogue's models: which, and in what order.")
    gpus = command("gpus", _gpus, "The catalogue's GPUs: which, and in what order.")
    for each, listing in ((models, ModelListing), (gpus, GpuListing)):
        add_listing_flags(each, listing)
    for each in (estimating, solving, comparing, explaining, models, gpus):
        each.add_argument("--json", action="store_true", help="Print JSON and nothing else.")
    for each in (estimating, solving, comparing, explaining):
        each.usage = f"{each.prog} MODEL [--FLAG VALUE ...] [--json]"
        add_scenario_flags(each)
    explaining.usage = f"{explaining.prog} [{' | '.join(TOPICS)}] MODEL [--FLAG VALUE ...] [--json]"
    solving.usage = f"{solving.prog} MODEL (--maximise FIELD | --minimise FIELD) [--FLAG VALUE ...] [--json]"
    comparing.usage = (
        f"{comparing.prog} MODEL --vary FIELD=VALUE,... [--FLAG VALUE ...] [--json]\n"
        f"       {comparing.prog} FILE [FILE ...] [--json]"
    )
    add_comparison_arguments(comparing)
    serving = command("serve", _serve, "Serve the page and the HTTP interface.")
    serving.add_argument("--host", default="127.0.0.1", help="Address to listen on. Default: %(default)s.")
    serving.add_argument("--port", default=8000, type=_port, help="Default: %(default)s.")
    return parser


def _estimate(options: argparse.Namespace) -> int:
    answer = estimate(scenario_from_options(options))
    if options.json:
        _write_json(answer.to_dict(reserved=options.reserved))
    else:
        from .report import print_estimate  # rich takes longer to import than an estimate takes

        print_estimate(answer)
    return DOES_NOT_FIT if options.fail_if_oom and answer.memory.fits is False else ANSWERED


def _solve(options: argparse.Namespace) -> int:
    answer = solve(scenario_from_options(options), maximise=options.maximise, minimise=options.minimise)
    if options.json:
        _write_json(answer.to_dict())
    else:
        from .report import print_solution

        print_solution(answer)
    return DOES_NOT_FIT if options.fail_if_oom and answer.value is None else ANSWERED


def _compare(options: argparse.Namespace) -> int:
    answer = compare(scenarios_from_options(options))
    if options.json:
        _write_json(answer.to_dict())
    else:
        from .report import print_comparison

        print_comparison(answer)
    return ANSWERED


def _topic_as_flag(arguments: Sequence[str]) -> list[str]:
    """`explain recompute MODEL` is `explain --topic recompute MODEL`: argparse cannot leave out the first of two."""
    command, *rest = arguments or [""]
    return [command, "--topic", *rest] if command == "explain" and rest and rest[0] in TOPICS else list(arguments)


def _topics() -> str:
    return "; ".join(f"{name}: {topic.text}" for name, topic in TOPICS.items()) + ". Default: %(default)s."


@dataclass(frozen=True, slots=True)
class _Topic:
    """What `explain` can be asked: in words, the answer's parts, and how each is written and printed."""

    text: str
    answer: Callable[..., Any]
    """Of the Scenario, and of lengths where `takes_lengths`."""
    to_json: Callable[[Any], Any]
    printer: str
    """The function of `report`, which is imported when it prints."""
    takes_lengths: bool = False


def _each(to_object: Callable[[Any], dict[str, Any]]) -> Callable[[Iterable[Any]], list[dict[str, Any]]]:
    return lambda entries: list(map(to_object, entries))


TOPICS = {
    "formulas": _Topic(
        "the closed formulas with this scenario's numbers, beside the ledger",
        lambda scenario: formulas(estimate(scenario)),
        _each(asdict),
        "print_formulas",
    ),
    "peak": _Topic(
        "the largest tensors alive at the peak",
        lambda scenario: largest_at_peak(estimate(scenario).tensors),
        _each(lambda entry: entry.to_dict()),
        "print_tensors",
    ),
    "recompute": _Topic(
        "what each way of recomputation keeps and what it computes again",
        recompute_tradeoffs,
        _each(lambda tradeoff: tradeoff.to_dict()),
        "print_tradeoffs",
    ),
    "advice": _Topic(
        "what would lower the peak, and what that costs",
        advise,
        _each(lambda advice: advice.to_dict()),
        "print_advice",
    ),
    "lengths": _Topic(
        "what padding wastes and packing spares, for samples of the --lengths in a file",
        length_report,
        lambda report: report.to_dict(),
        "print_lengths",
        takes_lengths=True,
    ),
}


def _explain(options: argparse.Namespace) -> int:
    topic = TOPICS[options.topic]
    scenario = scenario_from_options(options)
    if topic.takes_lengths is (options.lengths is None):
        raise ConfigError("lengths", options.lengths, "belongs to the topic lengths, which needs it: a file of lengths")
    answer = topic.answer(scenario, read_lengths(options.lengths)) if topic.takes_lengths else topic.answer(scenario)
    if options.json:
        _write_json(topic.to_json(answer))
    else:
        from . import report

        getattr(report, topic.printer)(answer)
    return ANSWERED


def _models(options: argparse.Namespace) -> int:
    models = list_models(listing_from_options(ModelListing, options))
    if options.json:
        _write_json([model.to_dict() for model in models])
    else:
        from .report import print_models

        print_models(models)
    return ANSWERED


def _gpus(options: argparse.Namespace) -> int:
    gpus = list_gpus(listing_from_options(GpuListing, options))
    if options.json:
        _write_json([gpu.to_dict() for gpu in gpus])
    else:
        from .report import print_gpus

        print_gpus(gpus)
    return ANSWERED


def _serve(options: argparse.Namespace) -> int:
    try:
        import uvicorn
    except ModuleNotFoundError:
        return _complain("serve needs packages that are not installed: pip install 'gpucalc[serve]'")
    uvicorn.run("api.app:create_app", factory=True, host=options.host, port=options.port, access_log=False)
    return ANSWERED


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 2**16:
        raise ValueError
    return port


def _write_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def _complain(message: str) -> int:
    sys.stderr.write(f"gpucalc: {message}\n")
    return WRONG_QUESTION


def _unknown_argument(argument: str) -> ConfigError:
    names = [*(name for name, _ in scenario_fields()), *ModelListing.model_fields, *GpuListing.model_fields]
    near = get_close_matches(argument.split("=")[0], map(flag, names), n=1)
    hint = f"unknown, did you mean {near[0]}?" if near else "unknown, see gpucalc --help"
    return ConfigError("argument", argument, hint)
