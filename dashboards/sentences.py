"""What the core says in plain sentences (notes, formulas, what a field should be), in the reader's language.

The core writes English. `sentences.json` has for each English sentence its Chinese one; `{}` stands for what the core
puts in, `{0}` for the first of these in the translation. Names, numbers and sources stay as they are.
"""

import json
import re
from functools import cache
from importlib.resources import files

from .words import Language

_CHINESE: dict[str, str] = json.loads(files("dashboards").joinpath("sentences.json").read_bytes())

LIST_SEPARATOR = ", "


def in_language(sentence: str, language: Language) -> str:
    """`sentence` in `language`; as it is where no translation is known. What is put in is translated likewise."""
    return sentence if language is Language.ENGLISH else _chinese(sentence)


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Every English sentence as a pattern, those that say most themselves first."""
    longest_first = sorted(_CHINESE, key=lambda english: -len(english.replace("{}", "")))
    return [
        (re.compile("(.*?)".join(map(re.escape, english.split("{}"))), re.DOTALL), _CHINESE[english])
        for english in longest_first
    ]


def _chinese(sentence: str) -> str:
    for pattern, chinese in _patterns():
        if found := pattern.fullmatch(sentence):
            return chinese.format(*map(_chinese, found.groups()))
    if LIST_SEPARATOR in sentence:
        return "、".join(map(_chinese, sentence.split(LIST_SEPARATOR)))
    return sentence
