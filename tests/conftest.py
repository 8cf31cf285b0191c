"""What all tests share: random tests that can be repeated, and no silent skip."""

import os
from collections.abc import Generator
from typing import TypeVar

import hypothesis
import pytest

# The workers of pytest-xdist share the cores: threads of torch's own would spend them waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# `make test` runs the same examples every time; `make test-full` new ones, and with a failure the line that repeats it.
hypothesis.settings.register_profile("fixed", derandomize=True, database=None, deadline=None, print_blob=True)
hypothesis.settings.register_profile("new", deadline=None, print_blob=True)
PROFILE = "new" if os.environ.get("TEST_FULL") else "fixed"
hypothesis.settings.load_profile(PROFILE)


# A worker that gets one of these last would leave the others idle.
LONGEST_FILES = (
    "test_ledger_against_trace.py",
    "test_ledger_against_trace_of_llamas.py",
    "test_browser.py",
    "test_random_families.py",
    "test_float8.py",
    "test_measure.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first."""
    ranks = {name: rank for rank, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_report_header() -> str:
    seed = "random, printed with a failure" if PROFILE == "new" else "fixed by each test's source"
    return f"hypothesis: profile {PROFILE}, seed {seed}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return fail_if_skipped((yield))


def fail_if_skipped(report: Report) -> Report:
    """A skipped test is a failed one: what cannot run everywhere carries the `gpu` marker and is deselected."""
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but every test that is selected must run: {report.longrepr}"
    return report
