import json
import re
from pathlib import Path

import dashboards
from calc.advice import CHANGES, CHANGES_OF_INFERENCE, Effect
from dashboards.words import WORDS, Language, preferred_language

PLACEHOLDER = re.compile(r"\{(\w+)\}")
FILES = Path(dashboards.__file__).parent


def test_both_languages_say_everything_with_the_same_numbers():
    for key, english in WORDS[Language.ENGLISH].items():
        chinese = WORDS[Language.CHINESE][key]
        assert english.strip(), key
        assert chinese.strip(), key
        assert sorted(PLACEHOLDER.findall(english)) == sorted(PLACEHOLDER.findall(chinese)), key


def test_every_change_and_every_effect_has_words():
    for words in WORDS.values():
        assert {f"advice.{key}" for key in {*CHANGES, *CHANGES_OF_INFERENCE}} == {
            key for key in words if key.startswith("advice.")
        }
        assert {f"effect.{effect}" for effect in Effect} == {key for key in words if key.startswith("effect.")}


def test_no_word_is_left_over():
    sources = [*FILES.rglob("*.html"), *FILES.glob("*.py")]
    text = "".join(source.read_text() for source in sources)
    prefixes = set(re.findall(r"""["']([\w.]+\.)["'] ~""", text)) | set(re.findall(r'f"([\w.]+\.)\{', text))
    for key in WORDS[Language.ENGLISH]:
        composed = key.rpartition(".")[0] + "." in prefixes or key.rpartition(".")[0] in ("precision", "recompute")
        named = re.search(rf"w\.{re.escape(key)}\b|[\"']{re.escape(key)}[\"']", text)
        assert named or composed or "." in key, key


def test_the_language_is_the_chosen_one_or_the_browsers_first():
    assert preferred_language(None, "") is Language.ENGLISH
    assert preferred_language(None, "zh-CN,zh;q=0.9,en;q=0.8") is Language.CHINESE
    assert preferred_language("en", "zh-CN") is Language.ENGLISH
    assert preferred_language(None, "de,zh;q=0.5") is Language.ENGLISH


def test_the_dictionary_has_no_key_twice():
    pairs: list[str] = []
    json.loads((FILES / "words.json").read_text(), object_pairs_hook=lambda items: pairs.extend(k for k, _ in items))
    keys = [key for key in pairs if key not in ("en", "zh")]
    assert len(keys) == len(set(keys))
