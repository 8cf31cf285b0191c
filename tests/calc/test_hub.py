"""Configs from the hub: the real library against a local stand-in, each in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from calc.hub import HUB_SECONDS

ROOT = Path(__file__).parents[2]
CONFIG = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
STARTING_SECONDS = 20
"""A new interpreter and its imports, on a machine that is busy with other tests."""

REFUSED = {
    "someone/gated": (403, "GatedRepo"),
    "someone/absent": (404, "RepoNotFound"),
    "someone/llama-3.1-9b": (401, "RepoNotFound"),
    "someone/no-config": (404, "EntryNotFound"),
    "someone/forbidden": (451, ""),
}
"""Status and X-Error-Code, as the hub answers."""


class StandIn(BaseHTTPRequestHandler):
    """The hub's answers to what `hf_hub_download` asks for a config.json."""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(json.dumps(CONFIG).encode())

    def _answer(self, body: bytes) -> None:
        repository = self.path.partition("/resolve/")[0].strip("/")
        if repository == "someone/silent":
            time.sleep(2 * HUB_SECONDS)
        status, code = REFUSED.get(repository, (200, ""))
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{COMMIT}"')
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(json.dumps(CONFIG))))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def stand_in() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def estimate(model: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "calc", "estimate", model, "--sequence-length", "16", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"},
        check=False,
    )


def test_a_public_config_is_read_and_kept_for_when_the_hub_is_away(tmp_path: Path) -> None:
    with stand_in() as endpoint:
        read = estimate("someone/their-gpt2", endpoint, tmp_path)
    kept = estimate("someone/their-gpt2", endpoint, tmp_path)
    for done in (read, kept):
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["model"]["hidden_size"] == 64


def test_the_catalogue_needs_no_hub(tmp_path: Path) -> None:
    done = estimate("openai-community/gpt2", "http://127.0.0.1:1", tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("someone/gated", "is gated on the hub: accept its terms there and log in with `hf auth login`"),
        ("someone/absent", "is not in the catalogue, and not on the hub or private there"),
        ("someone/llama-3.1-9b", "did you mean llama-3.1-8b"),
        ("someone/no-config", "has no config.json on the hub"),
        ("someone/forbidden", "could not be read from the hub: "),
        ("some one/gpt2", "is not in the catalogue, and no id of the hub; did you mean gpt2"),
    ],
)
def test_what_the_hub_does_not_give_is_one_clear_line(model: str, words: str, tmp_path: Path) -> None:
    with stand_in() as endpoint:
        done = estimate(model, endpoint, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"gpucalc: model = {model!r}: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("silent", [True, False], ids=["a hub that says nothing", "no hub"])
def test_a_hub_out_of_reach_is_said_within_seconds(silent: bool, tmp_path: Path) -> None:
    with stand_in() as endpoint:
        started = time.monotonic()
        done = estimate("someone/silent", endpoint if silent else "http://127.0.0.1:1", tmp_path)
        seconds = time.monotonic() - started
    assert (done.returncode, done.stdout) == (2, "")
    assert f"the hub was not reached within {HUB_SECONDS:g} seconds" in done.stderr
    assert done.stderr.count("\n") == 1
    assert seconds < HUB_SECONDS + STARTING_SECONDS
