"""What a Scenario calls a model: a catalogue name, a path, a hub id, the config itself."""

import json
import sys
from pathlib import Path

import pytest

from calc import ConfigError, load_model
from calc.json_file import LARGEST_FILE_BYTES
from calc.model_source import load_config

CONFIG = {"model_type": "gpt2", "n_embd": 64, "n_head": 4}


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_config() -> None:
    assert load_model(CONFIG).hidden_size == 64


@pytest.mark.parametrize("name", ["llama-3.1-8b", "Llama-3.1-8B", "meta-llama/Llama-3.1-8B"])
def test_a_name_in_the_catalogue(name: str) -> None:
    assert load_model(name) == load_model("llama-3.1-8b")
    assert load_config(name)["model_type"] == "llama"


@pytest.mark.parametrize("name", ["config.json", "my-gpt2", "a file.json"])
def test_a_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, json.dumps(CONFIG))
    assert load_model(path) == load_model(CONFIG)


def test_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "config.json", json.dumps(CONFIG))
    assert load_model(str(tmp_path)) == load_model(CONFIG)


def test_a_name_comes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert load_model("gpt2").vocab_size == 50257


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('"gpt2"', "should hold a JSON object, not a str"),
        ("[]", "should hold a JSON object, not a list"),
        (" " * (LARGEST_FILE_BYTES + 1), "is larger than"),
    ],
    ids=["empty", "broken", "deep", "text", "list", "large"],
)
def test_files_that_hold_no_config(tmp_path: Path, content: str, words: str) -> None:
    path = write(tmp_path / "config.json", content)
    assert_refused(path, "model", words)


def test_a_file_of_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert_refused(str(path), "model", "is not JSON")


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert_refused(str(tmp_path), "model", "cannot be read: No such file or directory")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "not in the catalogue"),
        ("no-such-model", "not in the catalogue"),
        ("llama-3.1-9b", "did you mean llama-3.1-8b"),
        ("no-such-file.json", "cannot be read: No such file or directory"),
        ("a/b/c", "not in the catalogue"),
        ("../gone", "not in the catalogue"),
        ("\0", "not in the catalogue"),
        ("\0.json", "cannot be a file's name"),
        ("x" * 100_000, "not in the catalogue"),
        ("x" * 100_000 + ".json", "cannot be read: File name too long"),
    ],
)
def test_names_that_mean_nothing(name: str, words: str) -> None:
    assert_refused(name, "model", words)


def test_a_config_that_cannot_be_meant(tmp_path: Path) -> None:
    path = write(tmp_path / "config.json", json.dumps(CONFIG | {"n_head": 5}))
    assert_refused(path, "model.n_head", "should divide n_embd = 64")


def assert_refused(model: str, field: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_model(model)
    assert refusal.value.field == field
    assert words in refusal.value.expected


def test_a_hub_id_where_the_hubs_library_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    assert_refused("someone/their-gpt2", "model", "pip install 'gpucalc[hub]'")
