"""Up to four scenarios as columns: their questions in one address, and what the page shows of their answers.

The address holds the contract's dotted fields behind the column's letter: `a.model=gpt2&b.model=gpt2&b.recompute=full`.
Fields without a letter are one scenario; two usual remedies then stand beside it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import calc
from calc.comparison import AT_PEAK, MOST_SCENARIOS, MOST_SEQUENCES, Comparison, Number, compared, unit_of
from calc.scenario import Task
from calc.timeline import Phase

from . import figures
from .address import CONFIG, query_pairs, scenario_from_query
from .comparison import alternatives, lora_rank
from .example import EXAMPLE
from .form import CHOICES, written
from .views import PHASE_KEYS

LETTERS = "abcd"[:MOST_SCENARIOS]

ASKED: dict[str, tuple[str, ...]] = {
    Task.TRAINING: (
        *("micro_batch_size", "sequence_length", "gradient_accumulation_steps", "precision", "optimizer", "attention"),
        *("recompute", "adapter.kind", "adapter.rank"),
    ),
    Task.EVALUATION: ("micro_batch_size", "sequence_length", "precision", "attention"),
    Task.INFERENCE: (
        "batch_size",
        "prompt_length",
        "output_length",
        "weight_dtype",
        "cache_implementation",
        "kv_cache_dtype",
        "page_size",
        "attention",
    ),
}
"""The fields that a column shows beside model and GPU, by its task; the others are shown where they differ."""
LENGTHS = ("sequence_length", "prompt_length", "output_length")
"""Numbers that depend on the model unless they are given."""

BESIDE = ("full", "lora", "full_training")
"""The alternatives that stand beside a single scenario, as many of them as there are, up to NUM_BESIDE."""
NUM_BESIDE = 2
PHASE_PEAK = re.compile(r"memory\.phases\.(\w+)\.peak_allocated_bytes")

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One scenario of the address, with its answer or what is wrong with it."""

    pairs: Pairs
    scenario: calc.Scenario | None = None
    estimate: calc.Estimate | None = None
    wrong: calc.ConfigError | None = None

    @property
    def task(self) -> str:
        return dict(self.pairs).get("task", Task.TRAINING)

    @property
    def asked(self) -> tuple[str, ...]:
        """The fields it shows beside model and GPU."""
        return ASKED.get(self.task, ())


def columns_of(items: Iterable[tuple[str, str]]) -> list[Column]:
    """The columns that an address describes."""
    by_letter: dict[str, Pairs] = {}
    for name, text in items:
        letter, dot, field = name.partition(".")
        is_lettered = dot and letter in LETTERS
        by_letter.setdefault(letter if is_lettered else "", []).append((field if is_lettered else name, text))
    alone = written(by_letter.pop("", []))
    if by_letter:
        # A field without a letter beside lettered ones belongs to nobody: the first column's answer says so.
        first = min(by_letter)
        return [
            _column(written(pairs) + (alone if letter == first else [])) for letter, pairs in sorted(by_letter.items())
        ]
    column = _column(alone or query_pairs(EXAMPLE))
    return [column, *map(_column, _remedies(column))]


def _column(pairs: Pairs) -> Column:
    try:
        scenario = scenario_from_query(pairs)
        return Column(pairs=pairs, scenario=scenario, estimate=calc.estimate(scenario))
    except calc.ConfigError as error:
        return Column(pairs=pairs, wrong=error)


def _remedies(column: Column) -> list[Pairs]:
    if column.scenario is None or column.estimate is None:
        return []
    rows = {row.key: row for row in alternatives(column.scenario, column.estimate)}
    usual = [rows[key].scenario for key in BESIDE if key in rows and not rows[key].is_current]
    return [query_pairs(scenario) for scenario in usual[:NUM_BESIDE]]


def address(columns: Sequence[Pairs]) -> str:
    """The query string that holds `columns`."""
    lettered = zip(LETTERS, columns, strict=False)
    return urlencode([(f"{letter}.{name}", text) for letter, pairs in lettered for name, text in pairs])


def compare_view(items: Iterable[tuple[str, str]], words: Mapping[str, str]) -> dict[str, Any]:
    """Everything the template needs for an address."""
    columns = columns_of(items)
    answered = [index for index, column in enumerate(columns) if column.estimate]
    comparison = compared([column.estimate for column in columns if column.estimate]) if answered else None
    memories = [answer.to_dict()["memory"] for answer in comparison.estimates] if comparison else []
    scale = max(map(figures.bar_scale, memories), default=0)
    asked = list(dict.fromkeys(name for column in columns for name in column.asked))
    shown_bars = dict(zip(answered, (figures.bar(memory, scale) for memory in memories), strict=True))
    return {
        "columns": [_column_view(columns, index, shown_bars.get(index)) for index in range(len(columns))],
        "marked": _marked(comparison, answered),
        "asked_fields": asked,
        "other_fields": _other_fields(comparison, answered, len(columns), asked),
        "quantities": _quantities(comparison, answered, len(columns)),
        "rows": _rows(comparison, words),
        "overlay": figures.overlay(memories) if memories else None,
        "overlay_title": words[f"curve_title.{columns[answered[0]].task if answered else Task.TRAINING}"],
        "drawn_letters": [LETTERS[index] for index in answered],
        "additions": _additions(columns, words),
        "choices": CHOICES,
        "wrong": None if answered else columns[0].wrong,
        "first_query": urlencode(columns[0].pairs),
    }


def _column_view(columns: Sequence[Column], index: int, bar: dict[str, Any] | None) -> dict[str, Any]:
    column = columns[index]
    values = dict(column.pairs)
    others = [other.pairs for number, other in enumerate(columns) if number != index]
    shown = {"model", CONFIG, "gpu", *column.asked}
    filled = column.estimate.scenario if column.estimate else None
    return {
        "letter": LETTERS[index],
        "values": values,
        "task": column.task,
        "asked": column.asked,
        "kept": [(name, text) for name, text in column.pairs if name not in shown],
        "open": urlencode(column.pairs),
        "without": address(others) if others else None,
        "wrong": column.wrong,
        "memory": column.estimate.memory if column.estimate else None,
        "lengths": {name: getattr(filled, name) if filled else "" for name in LENGTHS},
        "bar": bar,
    }


def _marked(comparison: Comparison | None, answered: Sequence[int]) -> dict[str, set[int]]:
    """The fields that differ, and the columns in which they differ from the first that is answered."""
    return {
        name: {index for index, value in zip(answered, values, strict=True) if value != values[0]}
        for name, values in _fields(comparison).items()
    }


def _fields(comparison: Comparison | None) -> dict[str, tuple[Any, ...]]:
    """The fields that differ; an adapter's only where adapters differ, not where there is none."""
    fields = comparison.fields if comparison else {}
    return {name: values for name, values in fields.items() if not _is_only_without(name, values)}


def _is_only_without(name: str, values: Sequence[Any]) -> bool:
    given = [value for value in values if value is not None]
    return name.startswith("adapter.") and name != "adapter.kind" and all(value == given[0] for value in given)


def _other_fields(
    comparison: Comparison | None, answered: Sequence[int], num_columns: int, asked: Sequence[str]
) -> list[dict[str, Any]]:
    """The fields that differ and have no row of their own."""
    rows = []
    for name, values in _fields(comparison).items():
        if name not in ("model", "gpu", *asked) and not name.startswith("model."):
            by_column = dict(zip(answered, values, strict=True))
            rows.append({"name": name, "values": [by_column.get(index) for index in range(num_columns)]})
    return rows


def _quantities(
    comparison: Comparison | None, answered: Sequence[int], num_columns: int
) -> dict[str, list[tuple[Number, Number] | None]]:
    """Per quantity and column: its value, and how much more it is than the first answered column's; None where the
    column has no such quantity."""
    if comparison is None:
        return {}
    columns = {}
    for name, values in comparison.quantities.items():
        by_column = {
            index: (value, 0 if values[0] is None else value - values[0])
            for index, value in zip(answered, values, strict=True)
            if value is not None
        }
        columns[name] = [by_column.get(index) for index in range(num_columns)]
    return columns


def _rows(comparison: Comparison | None, words: Mapping[str, str]) -> list[dict[str, Any]]:
    """The quantities that have a row, the parts of the peak first: its name, what it is called and counted in. What is
    zero in all columns has none."""
    if comparison is None:
        return []
    shown = [name for name, values in comparison.quantities.items() if any(values) or name == MOST_SEQUENCES]
    shown.sort(key=lambda name: not name.startswith(AT_PEAK))
    return [{"name": name, "unit": unit_of(name).name, **_called(name, words)} for name in shown]


def _called(name: str, words: Mapping[str, str]) -> dict[str, str]:
    """A quantity in words; a part of the peak with its swatch."""
    if name.startswith(AT_PEAK):
        part = name.removeprefix(AT_PEAK)
        return {"label": words[f"part.{part}"], "part": part}
    phase = PHASE_PEAK.fullmatch(name)
    if phase is None:
        return {"label": words[f"compared.{name}"], "part": ""}
    return {"label": words["compare_phase"].format(phase=words[PHASE_KEYS.get(Phase(phase[1]), phase[1])]), "part": ""}


def _additions(columns: Sequence[Column], words: Mapping[str, str]) -> list[dict[str, str]]:
    """What can stand beside the columns there are: the first one's alternatives, and a copy of it."""
    first, taken = columns[0], [column.pairs for column in columns]
    if len(columns) == MOST_SCENARIOS or first.scenario is None or first.estimate is None:
        return []
    scenarios = {
        words[f"alternative.{row.key}"].format(rank=lora_rank(row.scenario)): row.scenario
        for row in alternatives(first.scenario, first.estimate)
    }
    there = [column.scenario for column in columns]
    choices = {title: query_pairs(scenario) for title, scenario in scenarios.items() if scenario not in there}
    choices = {words["compare_copy"]: first.pairs, **choices}
    return [{"title": title, "query": address([*taken, pairs])} for title, pairs in choices.items()]
