"""Records of traces and measurements: JSON Lines, one object a line, appended and never edited."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "records"
TRACES = FOLDER / "traces.jsonl"
LIBRARIES = ("torch", "transformers", "peft")

Kind = Literal["measurement", "trace"]


def installed_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def commit() -> str:
    """The commit of this checkout; empty where there is no git to ask, or none it knows."""
    if (git := shutil.which("git")) is None:
        return ""
    command = [git, "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False).stdout.strip()


def file_of(gpu_name: str) -> str:
    """The name of a GPU's file: `nvidia-h200.jsonl`."""
    return f"{re.sub('[^a-z0-9]+', '-', gpu_name.lower())}.jsonl"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one run was seen to take; `measured` uses the Estimate's names."""

    kind: Kind
    id: str
    scenario: dict[str, Any]
    holdout: bool
    gpu_name: str | None = None
    """As the driver calls it; none for a trace."""
    versions: dict[str, Any] = field(default_factory=installed_versions)
    """Of torch, transformers and peft; of cuda and driver too for a measurement."""
    commit: str = field(default_factory=commit)
    recorded_at: str = field(default_factory=now)
    measured: dict[str, Any]

    @property
    def failed(self) -> str:
        """Why nothing was measured; empty where it was."""
        return "out of memory" if "out_of_memory" in self.measured else self.measured.get("error", "")

    def append_to(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_unfinished_line(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self)) + "\n")


def drop_unfinished_line(path: Path) -> None:
    """What a killed run left of its last line would join the next one."""
    if path.exists():
        text = path.read_bytes()
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def read(path: Path) -> Iterator[Record]:
    """The records of one file; a last line that a killed run left unfinished is no record."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield Record(**json.loads(line))


def read_all(folder: Path = FOLDER) -> list[Record]:
    return [record for path in sorted(folder.glob("*.jsonl")) for record in read(path)]
