"""The suites: what they cover, that the formulas answer them, and that they fit a GPU's memory and its minutes."""

from functools import cache
from itertools import combinations
from typing import Any
from urllib.parse import parse_qsl

import pytest

from calc import Estimate, Scenario, estimate
from calc.hardware import gpu_named
from calc.scenario import scenario_from_strings
from validation.cases import STEP, Case, config_of
from validation.suites import HOLDOUT, MEASURED, PAIRED_KNOBS, PAIRS, SIZES, SUITES, TRACES, can_meet

EVERY_CASE = [case for suite in SUITES.values() for case in suite]
STEPS_MEASURED = {name: suite for name, suite in MEASURED.items() if name != "inference"}
MEASURED_CASES = [case for suite in STEPS_MEASURED.values() for case in suite]
INFERENCE = MEASURED["inference"]
TOO_LARGE = "qwen2.5-14b?micro_batch_size=1&sequence_length=4096&attention=flash"


@cache
def answer(name: str, case_id: str) -> Estimate:
    return estimate(Scenario(**next(case.scenario for case in SUITES[name] if case.id == case_id)))


def field(case: Case, name: str) -> Any:
    return (STEP | case.scenario)[name]


# --- rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_no_case_is_asked_twice_in_a_suite(suite: str) -> None:
    ids = [case.id for case in SUITES[suite]]
    assert len(set(ids)) == len(ids)


def test_no_case_is_measured_in_two_suites() -> None:
    ids = [case.id for suite in MEASURED.values() for case in suite]
    assert len(set(ids)) == len(ids)


def test_the_holdout_shares_no_case_with_what_formulas_are_tuned_on() -> None:
    tuned_on = [case for name, suite in SUITES.items() for case in suite if name != "holdout" and not case.holdout]
    assert {case.id for case in HOLDOUT}.isdisjoint(case.id for case in tuned_on + TRACES)
    assert all(case.holdout for case in HOLDOUT)
    assert not any(case.holdout for name, suite in STEPS_MEASURED.items() if name != "holdout" for case in suite)


@pytest.mark.parametrize("case", EVERY_CASE, ids=lambda case: case.id)
def test_the_formulas_answer_every_case(case: Case) -> None:
    assert estimate(Scenario(**case.scenario)).memory.peak_allocated_bytes > 0


@pytest.mark.parametrize("case", [case for case in EVERY_CASE if isinstance(case.scenario["model"], str)])
def test_an_id_is_the_scenario_as_an_address_has_it(case: Case) -> None:
    model, _, query = case.id.partition("?")
    assert scenario_from_strings([("model", model), *parse_qsl(query)]) == Scenario(**case.scenario)


# --- what they cover ----------------------------------------------------------------------------------------------


def test_there_are_enough_cases() -> None:
    assert len(MEASURED_CASES) - len(HOLDOUT) >= 120
    assert len(HOLDOUT) >= 12
    assert 20 <= sum(case.history for case in MEASURED_CASES) <= 25


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "precision": ["fp32", "bf16", "bf16-autocast", "fp16-autocast"],
        "attention": ["eager", "flash", "efficient", "auto"],
        "optimizer": ["adamw", "adamw-fused", "adamw-for-loop", "sgd"],
        "recompute": ["none", "full"],
        "gradient_accumulation_steps": [1, 4],
        "dropout": [0.0, 0.1],
    }.items(),
)
@pytest.mark.parametrize("suite", ["alone", "pairs"])
def test_every_value_of_every_knob_is_seen(suite: str, name: str, values: list[Any]) -> None:
    assert {field(case, name) for case in MEASURED[suite]} >= set(values)


def test_each_family_is_seen_in_every_suite() -> None:
    for suite in STEPS_MEASURED.values():
        families = {config_of(case.scenario)["model_type"] for case in suite}
        assert families == {"gpt2", "llama", "mistral", "qwen2", "qwen3"}


def test_enough_generations_are_measured_and_all_say_their_sizes_and_types() -> None:
    assert sum(not case.holdout for case in INFERENCE) >= 40
    assert sum(case.holdout for case in INFERENCE) >= 8
    assert {case.scenario["task"] for case in INFERENCE} == {"inference"}
    said = {"batch_size", "prompt_length", "output_length", "precision"}
    assert all(case.scenario.keys() >= said for case in INFERENCE)
    assert {field(case, "attention") for case in INFERENCE} == {"auto", "eager", "flash", "math"}
    assert {field(case, "cache_implementation") for case in INFERENCE} == {None, "static"}
    assert len({config_of(case.scenario)["model_type"] for case in INFERENCE}) >= 20


def test_adapters_and_ties_are_seen_with_and_without() -> None:
    for suite in ("alone", "pairs"):
        assert {field(case, "adapter") is None for case in MEASURED[suite]} == {True, False}
        assert {config_of(case.scenario).get("tie_word_embeddings", True) for case in MEASURED[suite]} == {True, False}


def test_every_two_settings_that_can_meet_do() -> None:
    knobs = [name for name in PAIRED_KNOBS if name in STEP]
    met = {pair for case in PAIRS for pair in combinations([(name, str(field(case, name))) for name in knobs], 2)}
    for first, second in combinations(knobs, 2):
        for a in PAIRED_KNOBS[first]:
            for b in PAIRED_KNOBS[second]:
                assert (((first, str(a)), (second, str(b))) in met) == can_meet({first: a, second: b})


# --- memory and minutes -------------------------------------------------------------------------------------------

H200 = gpu_named("h200-sxm-141gb")
GIB = 2**30
LIBRARIES_BYTES = 2 * GIB
"""Generous: context, workspaces, blocks that are not used to their end."""


def test_only_one_case_does_not_fit_and_the_last_ones_come_near_the_limit() -> None:
    peaks = {case.id: answer("sizes", case.id).memory.peak_allocated_bytes for case in SIZES}
    assert peaks[TOO_LARGE] > H200.capacity_bytes
    assert SIZES[-1].id == TOO_LARGE
    del peaks[TOO_LARGE]
    assert 120 * GIB < max(peaks.values()) < H200.capacity_bytes - LIBRARIES_BYTES
    assert min(peaks.values()) < 2 * GIB
    assert any(70 * GIB < peak < 78 * GIB for peak in peaks.values())  # near 80 GB


@pytest.mark.parametrize("name", STEPS_MEASURED)
def test_no_other_case_comes_near_the_limit_unless_it_should(name: str) -> None:
    for case in MEASURED[name]:
        if name != "sizes":
            assert answer(name, case.id).memory.first_step_peak_allocated_bytes < 64 * GIB, case.id


def test_the_largest_generations_come_near_both_limits() -> None:
    peaks = [answer("inference", case.id).memory.peak_allocated_bytes for case in INFERENCE]
    assert 120 * GIB < max(peaks) < H200.capacity_bytes - LIBRARIES_BYTES
    assert any(60 * GIB < peak < 78 * GIB for peak in peaks)
    assert min(peaks) < GIB


STEPS = 8
"""Two counted, five timed, one profiled."""
CASE_SECONDS = 2.0
"""To build the model, read the profile, collect the garbage, write the record."""
LAYER_SECONDS = {"training": 0.01, "inference": 0.001}
"""Of the host, in one micro-batch: some 800 operators; in one pass of a generation: some 80."""
FLOPS_PER_SECOND = {"fp32": 35e12, "other": 300e12}
BYTES_PER_SECOND = 2.5e12
"""A third to a half of an H200's datasheet, so that the answer comes out too high: 67 and 989 TFLOP/s, 4.8 TB/s."""
TRIPS = 12
"""How often a byte of the peak is written or read in a step."""


def seconds(name: str, case: Case) -> float:
    """How long a case takes, by these assumptions and the ledger's FLOPs and bytes."""
    found = answer(name, case.id)
    rate = FLOPS_PER_SECOND.get(field(case, "precision"), FLOPS_PER_SECOND["other"])
    passes = 1 + (field(case, "output_length") or 0)
    host = (
        LAYER_SECONDS[field(case, "task")]
        * found.architecture.num_layers
        * field(case, "gradient_accumulation_steps")
        * passes
    )
    trips = TRIPS if field(case, "task") == "training" else passes
    memory = trips * found.memory.peak_allocated_bytes / BYTES_PER_SECOND
    return CASE_SECONDS + STEPS * (found.flops.total / rate + memory + host)


def test_each_suite_takes_less_than_eight_minutes_and_all_less_than_25() -> None:
    minutes = {name: sum(seconds(name, case) for case in suite) / 60 for name, suite in MEASURED.items()}
    assert max(minutes.values()) < 8, minutes
    assert sum(minutes.values()) < 25, minutes
    assert sum(minutes[name] for name in STEPS_MEASURED) < 15, minutes
