"""The core's sentences in Chinese: none is missing, and what is put in is kept."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import calc
from calc import Adapter, ConfigError, Scenario, estimate
from calc.explain import formulas
from calc.notes import OPTIMIZER_NOTES
from calc.scenario import Attention, Precision
from dashboards.sentences import _CHINESE, in_language
from dashboards.words import Language

CORE = Path(calc.__file__).parent
NOT_ON_THE_PAGE = {
    *("cli.py", "flags.py", "closed_forms.py", "recipes.py", "comparison.py", "lengths.py"),
    "commands",
}
"""Modules and folders."""
SPOKEN_WHOLE = {"notes.py", "inference_notes.py", "kernels.py", "liger.py", "float8_choices.py"}
"""Modules whose yielded and returned texts are said to the user."""
SAME_IN_BOTH = {"softmax", "FLOP"}


def template(node: ast.expr | None) -> str | None:
    """A literal or formatted string with {} for what is put in; None for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join("{}" if isinstance(part, ast.FormattedValue) else str(part.value) for part in node.values)  # pyright: ignore[reportAttributeAccessIssue]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def said(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        spoken: ast.expr | None = None
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = {"ConfigError": 2, "refuse": 1}.get(name)
            spoken = node.args[place] if place is not None and len(node.args) > place else None
        elif isinstance(node, ast.Yield | ast.Return) and file.name in SPOKEN_WHOLE:
            spoken = node.value
        if text := template(spoken):
            yield text


def test_every_sentence_of_the_core_has_a_translation() -> None:
    files = [file for file in CORE.rglob("*.py") if NOT_ON_THE_PAGE.isdisjoint((file.name, file.parent.name))]
    missing = {text for file in files for text in said(file)} - _CHINESE.keys()
    assert not missing


@pytest.mark.parametrize(
    "choices",
    [
        {"model": "gpt2", "optimizer": "muon", "weight_ema": True},
        {"model": "mixtral-8x7b"},
        {"model": "llama-3.1-8b", "adapter": Adapter(), "gpu": "rtx-4090", "loss": "fused-linear-cross-entropy"},
        {"model": "gpt2", "precision": "megatron-18", "implementation": "megatron", "recompute": "selective"},
    ],
)
def test_every_note_and_formula_is_said_in_chinese(choices: dict) -> None:
    answer = estimate(Scenario(**choices))
    for note in answer.notes:
        assert in_language(note, Language.CHINESE) != note
    for formula in formulas(answer):
        for text in (formula.title, formula.difference, formula.leaves_out, formula.note, formula.unit):
            assert not text or text in SAME_IN_BOTH or in_language(text, Language.CHINESE) != text


def test_what_is_said_of_optimizers_has_a_translation() -> None:
    assert set(OPTIMIZER_NOTES.values()) <= _CHINESE.keys()


def test_what_is_put_in_is_kept_and_translated_where_it_is_a_sentence() -> None:
    with pytest.raises(ConfigError) as refused:
        estimate(Scenario(model="gpt2", attention=Attention.FLASH, precision=Precision.FP32))
    chinese = in_language(refused.value.expected, Language.CHINESE)
    assert "fp16" in chinese
    assert chinese.endswith("请选 auto")
    assert "takes" not in chinese


def test_translations_put_in_the_same() -> None:
    for english, chinese in _CHINESE.items():
        values = [f"<{number}>" for number in range(english.count("{}"))]
        assert all(value in chinese.format(*values) for value in values), english


@pytest.mark.parametrize("gpu", ["v100-sxm2-32gb", "h100-sxm-80g", "rtx-4091"])
def test_names_that_were_meant_are_asked_for_in_chinese(gpu: str) -> None:
    with pytest.raises(ConfigError, match="did you mean") as refused:
        estimate(Scenario(model="gpt2", gpu=gpu))
    chinese = in_language(refused.value.expected, Language.CHINESE)
    assert "did you mean" not in chinese
    assert " or " not in chinese


def test_english_and_the_unknown_stay_as_they_are() -> None:
    assert in_language("should be true or false", Language.ENGLISH) == "should be true or false"
    assert in_language("nobody said this", Language.CHINESE) == "nobody said this"
