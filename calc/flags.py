"""Command-line flags made from the Scenario's fields: `--micro-batch-size 8`, `--adapter.rank 16`.

The texts go the way of a query string's, so one set of rules and messages holds everywhere. argparse, because it hands
values over as they were typed; cyclopts converts them on its own terms (it renames `adamw-8bit` to `adamw-8-bit`).
"""

import argparse
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args

from pydantic.fields import FieldInfo

from .errors import ConfigError
from .json_file import STANDARD_INPUT, read_json_object
from .scenario import Question, Scenario, scenario_from_strings


def add_scenario_flags(parser: argparse.ArgumentParser) -> None:
    """MODEL, `--scenario` and one flag per field of the Scenario."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help=_text(Scenario.model_fields["model"]))
    parser.add_argument(
        "--scenario", metavar="FILE", help=f"The whole scenario as JSON; {STANDARD_INPUT} reads standard input."
    )
    group = parser.add_argument_group("scenario")
    for name, field in scenario_fields():
        add_field_flag(group, name, field)


def add_field_flag(parser: argparse._ActionsContainer, name: str, field: FieldInfo) -> None:
    parser.add_argument(
        flag(name),
        dest="fields",
        action="append",
        default=[],
        type=lambda text: (name, text),
        metavar="VALUE",
        help=_text(field).replace("%", "%%"),
    )


def scenario_from_options(options: argparse.Namespace) -> Scenario:
    """The Scenario that the parsed flags, or the file they name, describe."""
    given = given_fields(options)
    if options.scenario is None:
        return scenario_from_strings(given)
    if given:
        raise ConfigError(*given[0], "should be in the --scenario file, which holds the whole scenario")
    return Scenario.model_validate(read_json_object(options.scenario, "--scenario"))


def given_fields(options: argparse.Namespace) -> list[tuple[str, str]]:
    return [("model", options.model), *options.fields] if options.model else options.fields


def scenario_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Every field but the model, by its dotted name."""
    for name, field in Scenario.model_fields.items():
        question = _first_subclass(field.annotation, Question)
        if question is not None:
            yield from ((f"{name}.{inner}", info) for inner, info in question.model_fields.items())
        elif name != "model":
            yield name, field


def flag(field_name: str) -> str:
    """`adapter.target_modules` → `--adapter.target-modules`."""
    return "--" + field_name.replace("_", "-")


def field_named(text: str) -> str:
    """`micro-batch-size` → `micro_batch_size`."""
    return text.replace("-", "_")


def _text(field: FieldInfo) -> str:
    """What the field is, the values it takes and its default."""
    choices = _first_subclass(field.annotation, Enum)
    values = f" One of {', '.join(member.value for member in choices)}." if choices else ""
    default = "" if field.is_required() or field.default is None else f" Default: {field.default}."
    return f"{field.description or ''}{values}{default}".strip()


def _first_subclass(annotation: Any, parent: type) -> Any:
    """The type itself, or the member of a union or a list that derives from `parent`, or None."""
    if isinstance(annotation, type) and issubclass(annotation, parent):
        return annotation
    inside = (_first_subclass(each, parent) for each in get_args(annotation))
    return next((each for each in inside if each is not None), None)
