"""JSON in and out. Exact integers may be longer than 64 bits, which orjson refuses; only those go the slower way."""

import json
from typing import Any

import orjson


def to_json(value: Any) -> bytes:
    """`value` as JSON, UTF-8. Its keys may be enums of text."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
