"""The estimates' `accuracy`: errors in the recorded cases that are nearest to the question."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from calc import accuracy
from calc.plan import Plan
from calc.scenario import Attention, Implementation, Precision, Task

EAGER = Plan(attention=Attention.EAGER)


def summary(cases: int) -> dict[str, Any]:
    return {"cases": cases, "median_relative_error": 0.0, "max_relative_error": 0.0, "underestimates": 0}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    recorded: dict[str, dict[str, Any]] = {"measurement": {}, "trace": {}}
    monkeypatch.setattr(accuracy, "read_accuracy", lambda: recorded)
    return recorded


def test_the_cases_that_share_most_are_the_nearest(recorded: dict[str, dict[str, Any]]) -> None:
    closest, kernel, family = accuracy.likenesses("gpt2", EAGER)
    recorded["trace"] = {kernel: summary(2), family: summary(3)}
    assert accuracy.nearest_accuracy("gpt2", EAGER) == {"compared_with": "trace", "alike": kernel, **summary(2)}
    recorded["trace"][closest] = summary(1)
    found = accuracy.nearest_accuracy("gpt2", EAGER)
    assert found is not None
    assert found["cases"] == 1
    recorded["measurement"] = {closest: summary(5)}
    found = accuracy.nearest_accuracy("gpt2", EAGER)
    assert found is not None
    assert (found["compared_with"], found["cases"]) == ("measurement", 5)


@pytest.mark.parametrize(
    "unlike",
    [
        replace(EAGER, implementation=Implementation.MEGATRON),
        replace(EAGER, precision=Precision.ZERO_16),
    ],
)
def test_nothing_is_said_of_what_was_never_recorded(unlike: Plan) -> None:
    assert accuracy.nearest_accuracy("gpt2", EAGER) is not None
    assert accuracy.nearest_accuracy("gpt2", unlike) is None
    assert accuracy.nearest_accuracy("bloom", EAGER) is None


@pytest.mark.parametrize("other", [Task.EVALUATION, Task.INFERENCE])
def test_a_case_of_another_task_is_not_alike(other: Task) -> None:
    there = accuracy.likenesses("gpt2", replace(EAGER, task=other))
    assert set(there).isdisjoint(accuracy.likenesses("gpt2", EAGER))


def test_the_file_is_read_when_first_asked_for() -> None:
    script = "import sys, calc.accuracy; print(calc.accuracy.read_accuracy.cache_info().currsize)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "0"


def test_every_source_of_the_generated_file_is_read() -> None:
    assert set(accuracy.read_accuracy()) == set(accuracy.SOURCES)
