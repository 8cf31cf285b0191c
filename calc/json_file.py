"""JSON objects from files people hand in: any file may be given, so all that can be wrong has its message."""

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

from .errors import ConfigError

LARGEST_FILE_BYTES = 4 * 2**20
"""A config.json has a few kB; the largest known (with label names of many classes) have about 1 MiB."""

STANDARD_INPUT = "-"


def read_json_object(path: str | Path, field: str) -> dict[str, Any]:
    """The JSON object in the file at `path`, or on standard input for `-`. `field` is what errors call it."""
    text = read_text(path, field)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(field, str(path), f"is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(field, str(path), f"should hold a JSON object, not a {type(content).__name__}")
    return content


def read_text(path: str | Path, field: str) -> bytes:
    """What is in the file at `path`, or on standard input for `-`."""
    try:
        if path == STANDARD_INPUT:
            text = _read_bounded(sys.stdin.buffer)
        else:
            with open(path, "rb") as file:
                text = _read_bounded(file)
    except OSError as error:
        raise ConfigError(field, str(path), f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(field, str(path), "cannot be a file's name") from None
    if len(text) > LARGEST_FILE_BYTES:
        raise ConfigError(field, str(path), f"is larger than {LARGEST_FILE_BYTES:,} bytes")
    return text


def _read_bounded(file: BinaryIO) -> bytes:
    return file.read(LARGEST_FILE_BYTES + 1)
