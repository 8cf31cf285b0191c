"""The process that starts workers."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from validation import supervisor
from validation.supervisor import NEW_PROCESS

DONE, CRASHED = 0, -11


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were run; each worker's status is taken from `statuses`."""
    ran: list[list[str]] = []

    def run(command: list[str], check: bool) -> Any:
        ran.append(command)
        return SimpleNamespace(returncode=statuses.pop(0))

    statuses = [NEW_PROCESS, NEW_PROCESS, DONE]
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(supervisor.time, "time", lambda: 1000.0)
    return ran


def test_workers_are_started_until_one_is_done(commands: list[list[str]]) -> None:
    assert supervisor.main(["--suite", "holdout", "--minutes", "8"]) == DONE
    worker = [sys.executable, "-m", "validation.measure", "--suite", "holdout", "--minutes", "8", "--until=1480.0"]
    assert commands == [worker] * 3


def test_only_the_first_worker_asks_again_for_errors(commands: list[list[str]]) -> None:
    supervisor.main(["--again"])
    assert ["--again" in command for command in commands] == [True, False, False]


def test_a_crash_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=CRASHED))
    assert supervisor.main([]) == CRASHED


def test_an_unknown_suite_is_refused_before_a_worker_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        supervisor.main(["--suite", "first"])
    assert "invalid choice: 'first'" in capsys.readouterr().err


def test_it_imports_no_torch() -> None:
    program = "import sys; import validation.supervisor; print('torch' in sys.modules, 'calc' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False False\n"
