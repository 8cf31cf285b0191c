"""Errors as RFC 9457 problem details (`application/problem+json`); a ConfigError gives `field`, `value`, `expected`."""

import math
from typing import Any

from fastapi import FastAPI
from fastapi_problem.error import Problem, ServerProblem
from fastapi_problem.handler import ExceptionHandler, add_exception_handler, new_exception_handler
from starlette.requests import Request

import calc
from calc.errors import shown

LARGEST_JSON_INTEGER = 2**53
"""Beyond it JavaScript rounds; such a value is quoted as text."""


class UnexpectedProblem(ServerProblem):
    """A defect of ours. The cause goes to the log, not to the client."""

    title = "Internal error"
    type_ = "internal-error"

    def __init__(self, _cause: str = "", **_details: Any) -> None:
        super().__init__("The server failed to answer; its log says why.")


def config_problem(_handler: ExceptionHandler, _request: Request, error: calc.ConfigError) -> Problem:
    return Problem(
        title="The question cannot be answered",
        detail=str(error),
        type_="config-error",
        status=422,
        field=error.field,
        value=json_scalar(error.value),
        expected=error.expected,
    )


def json_scalar(value: object) -> object:
    """`value` itself where JSON can hold it exactly and briefly, else the text that messages quote."""
    exact = (
        value is None
        or isinstance(value, bool)
        or (isinstance(value, int) and abs(value) <= LARGEST_JSON_INTEGER)
        or (isinstance(value, float) and math.isfinite(value))
    )
    if exact:
        return value
    return shown(value).strip("'") if isinstance(value, str) else shown(value)


def install(app: FastAPI) -> None:
    """Answer every error of `app` as a problem."""
    handler = new_exception_handler(
        handlers={calc.ConfigError: config_problem}, unhandled_wrappers={"default": UnexpectedProblem}
    )
    add_exception_handler(app, handler)
    app.add_exception_handler(calc.ConfigError, handler)
