"""The page's own words in each language, from words.json. The contract's names are the same in all."""

import json
from collections.abc import Mapping
from enum import StrEnum
from importlib.resources import files


class Language(StrEnum):
    ENGLISH = "en"
    CHINESE = "zh"


LABELS = {Language.ENGLISH: "EN", Language.CHINESE: "中文"}
"""What each language calls itself in the switch."""

_ALL = json.loads(files("dashboards").joinpath("words.json").read_bytes())

WORDS: Mapping[Language, Mapping[str, str]] = {
    language: {key: texts[language] for key, texts in _ALL.items()} for language in Language
}


def preferred_language(chosen: str | None, accept_language: str) -> Language:
    """`chosen` if it is one of ours, else what the browser's Accept-Language header asks for first."""
    wanted = chosen or accept_language
    return Language.CHINESE if wanted.lower().startswith("zh") else Language.ENGLISH
