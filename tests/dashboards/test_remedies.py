from urllib.parse import parse_qsl

import pytest

import calc
from calc.advice import Effect
from calc.scenario import Attention
from dashboards.address import scenario_from_query
from dashboards.comparison import needed_bytes
from dashboards.remedies import GENTLEST_FIRST, MOST_CHANGES, remedies_view
from dashboards.words import WORDS, Language

WORDS_IN_ENGLISH = WORDS[Language.ENGLISH]

QUESTIONS = [
    {"model": "gpt2", "gpu": "rtx-4090", "attention": "eager", "micro_batch_size": 8},
    {"model": "llama-3.1-8b", "gpu": "a100-sxm-80gb", "micro_batch_size": 4},
    {"model": "qwen3-0.6b", "adapter": {"kind": "lora"}, "recompute": "full", "recompute_interval": 2},
]


@pytest.fixture(params=QUESTIONS, ids=lambda question: question["model"], scope="module")
def answered(request):
    scenario = calc.Scenario(**request.param)
    return scenario, calc.estimate(scenario), remedies_view(scenario, WORDS_IN_ENGLISH)


def scenario_of(row):
    return scenario_from_query(parse_qsl(row["query"]))


def test_a_length_that_the_config_fixes_is_not_sought():
    view = remedies_view(calc.Scenario(model="vit-base-patch16-224", gpu="rtx-4090"), WORDS_IN_ENGLISH)
    assert [row["query"].count("sequence_length") for row in view["largest"]] == [0]


def test_every_row_says_what_its_link_answers(answered):
    _, current, view = answered
    for row in view["advice"]["advice_beside"] + view["advice"]["advice_single"]:
        answer = calc.estimate(scenario_of(row))
        assert row["needed"] == needed_bytes(answer)
        assert row["saved"] in (0, needed_bytes(current) - needed_bytes(answer))
        assert row["fits"] is answer.memory.fits


def test_single_changes_save_most_first_and_are_not_in_the_table_yet(answered):
    scenario, _, view = answered
    beside, single = view["advice"]["advice_beside"], view["advice"]["advice_single"]
    saved = [row["saved"] for row in single]
    assert saved == sorted(saved, reverse=True)
    assert saved[-1] > 0
    assert len(single) <= MOST_CHANGES
    queries = [row["query"] for row in beside + single]
    assert len(queries) == len(set(queries))
    assert scenario not in [scenario_of(row) for row in single]


def test_no_advice_is_left_out_before_the_table_is_full(answered):
    scenario, _, view = answered
    shown = [scenario_of(row) for rows in view["advice"].values() for row in rows]
    if len(view["advice"]["advice_single"]) < MOST_CHANGES:
        large = [each for each in calc.advise(scenario) if each.saved_bytes > 2**28]
        assert large
        assert all(each.scenario in shown for each in large)


def test_the_nearest_that_fits_is_the_gentlest_change_that_does():
    scenario = calc.Scenario(model="gpt2", gpu="rtx-4090", micro_batch_size=16, attention=Attention.EAGER)
    assert calc.estimate(scenario).memory.fits is False
    fitting = [each for each in calc.advise(scenario) if each.estimate.memory.fits]
    assert {each.effect for each in fitting} > {Effect.SAME}
    gentlest = min(fitting, key=lambda each: (GENTLEST_FIRST.index(each.effect), each.added_flops))
    nearest = remedies_view(scenario, WORDS_IN_ENGLISH)["nearest"]
    assert scenario_of(nearest) == gentlest.scenario
    assert gentlest.effect is Effect.SAME
    assert gentlest.added_flops == min(each.added_flops for each in fitting if each.effect is Effect.SAME)


def test_where_no_single_change_fits_two_together_may():
    scenario = calc.Scenario(**QUESTIONS[1])
    assert not any(each.estimate.memory.fits for each in calc.advise(scenario))
    nearest = scenario_of(remedies_view(scenario, WORDS_IN_ENGLISH)["nearest"])
    assert (nearest.adapter, nearest.recompute) == (calc.Adapter(rank=16), "full")


def test_what_a_change_does_to_the_training_is_said(answered):
    scenario, _, view = answered
    by_scenario = {row["query"]: row["training"] for row in view["advice"]["advice_single"]}
    for each in calc.advise(scenario):
        for query, training in by_scenario.items():
            if scenario_from_query(parse_qsl(query)) == each.scenario:
                is_adapter = each.effect is Effect.FEWER_WEIGHTS
                assert (
                    training.endswith("of the weights")
                    if is_adapter
                    else training == WORDS_IN_ENGLISH[f"effect.{each.effect}"]
                )
