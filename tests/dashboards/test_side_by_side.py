from urllib.parse import parse_qsl

import pytest
from fastapi.testclient import TestClient

import calc
from api.app import create_app
from api.settings import Settings
from dashboards import figures
from dashboards.address import packed_config, query_pairs, scenario_from_query
from dashboards.example import EXAMPLE
from dashboards.side_by_side import LETTERS, address, columns_of, compare_view
from dashboards.words import WORDS, Language

WORDS_EN = WORDS[Language.ENGLISH]
GPT2 = [("model", "gpt2"), ("gpu", "rtx-4090")]


@pytest.fixture(scope="module")
def client():
    with TestClient(create_app(Settings())) as client:
        yield client


def lettered(*columns):
    return parse_qsl(address(columns))


def view(*columns):
    return compare_view(lettered(*columns), WORDS_EN)


def test_an_address_holds_the_columns_in_their_order():
    full = [*GPT2, ("recompute", "full"), ("adapter.kind", "lora"), ("adapter.rank", "4")]
    assert address([GPT2, full]) == (
        "a.model=gpt2&a.gpu=rtx-4090&b.model=gpt2&b.gpu=rtx-4090&b.recompute=full&b.adapter.kind=lora&b.adapter.rank=4"
    )
    assert [column.pairs for column in columns_of(lettered(GPT2, full))] == [GPT2, full]
    gaps = [("d.model", "gpt2"), ("b.model", "qwen3-0.6b")]
    assert [column.pairs for column in columns_of(gaps)] == [[("model", "qwen3-0.6b")], [("model", "gpt2")]]


def test_a_single_scenario_stands_beside_two_remedies():
    columns = columns_of(GPT2)
    scenarios = [
        scenario_from_query(GPT2),
        *(scenario_from_query([*GPT2, change]) for change in [("recompute", "full"), ("adapter.kind", "lora")]),
    ]
    assert [column.scenario and column.scenario.recompute for column in columns] == ["none", "full", "none"]
    assert [column.scenario for column in columns[:2]] == scenarios[:2]
    assert columns[2].scenario is not None
    assert columns[2].scenario.adapter is not None
    assert columns_of([])[0].scenario == EXAMPLE


@pytest.mark.parametrize(
    "asked",
    [
        [("model", "llama-3.1-8b"), ("task", "inference")],
        [("model", "mixtral-8x7b"), ("experts_implementation", "eager")],  # PEFT knows no default of its LoRA
    ],
)
def test_a_scenario_without_such_remedies_stands_alone_or_beside_others(client, asked):
    assert columns_of(asked)[0].estimate is not None
    assert client.get("/compare", params=asked).status_code == 200


def test_every_column_is_answered_as_it_would_be_alone():
    shown = view(GPT2, [*GPT2, ("micro_batch_size", "2")])
    alone = [calc.estimate(scenario_from_query([*GPT2, *more])) for more in ([], [("micro_batch_size", "2")])]
    first, second = (answer.memory.peak_allocated_bytes for answer in alone)
    assert shown["quantities"]["memory.peak_allocated_bytes"] == [(first, 0), (second, second - first)]
    assert [column["memory"] for column in shown["columns"]] == [answer.memory for answer in alone]
    phases = [
        shown["quantities"][f"memory.phases.{name}.peak_allocated_bytes"]
        for name in ("forward", "backward", "optimizer")
    ]
    assert max(phase[1][0] for phase in phases) == second


def test_what_differs_from_the_first_is_marked():
    shown = view(GPT2, [*GPT2, ("recompute", "full")], GPT2, [("model", "gpt2"), ("gpu", "a100-sxm-80gb")])
    assert shown["marked"] == {"recompute": {1}, "gpu": {3}}


def test_an_adapter_beside_none_is_one_difference():
    lora = [*GPT2, ("adapter.kind", "lora")]
    assert view(GPT2, lora)["marked"] == {"adapter.kind": {1}}
    assert view(lora, [*lora, ("adapter.rank", "16")])["marked"] == {"adapter.rank": {1}}


def test_a_field_without_a_row_of_its_own_is_shown_where_it_differs():
    shown = view(GPT2, [*GPT2, ("dropout", "0.3")])
    assert [(row["name"], row["values"]) for row in shown["other_fields"]] == [("dropout", [None, 0.3])]
    assert shown["columns"][1]["kept"] == [("dropout", "0.3")]


def test_a_wrong_column_leaves_the_others_their_answers():
    shown = view([*GPT2, ("sequence_length", "5000")], GPT2, [*GPT2, ("recompute", "full")])
    assert shown["columns"][0]["wrong"].field == "sequence_length"
    assert shown["wrong"] is None
    none, first, other = shown["quantities"]["memory.saved_activation_bytes"]
    assert none is None
    assert first[1] == 0
    assert other[0] - first[0] == other[1] < 0
    assert shown["drawn_letters"] == ["b", "c"]
    assert shown["additions"] == []


def test_each_column_shows_the_fields_and_phases_of_its_own_task():
    generates = [*GPT2, ("task", "inference"), ("batch_size", "3")]
    shown = view(generates, GPT2)
    of_inference, of_training = (set(column["asked"]) for column in shown["columns"])
    assert {"prompt_length", "output_length", "weight_dtype"} <= of_inference - of_training
    assert {"micro_batch_size", "precision", "adapter.kind"} <= of_training - of_inference
    assert set(shown["asked_fields"]) == of_inference | of_training
    assert shown["columns"][0]["kept"] == [("task", "inference")]
    assert shown["columns"][0]["lengths"]["prompt_length"] == 896
    assert [each is None for each in shown["quantities"]["memory.phases.prefill.peak_allocated_bytes"]] == [False, True]
    none, (peak, more) = shown["quantities"]["memory.phases.backward.peak_allocated_bytes"]
    assert none is None
    assert peak > more == 0


def test_what_belongs_to_no_column_is_named():
    shown = compare_view([*lettered(GPT2), ("colour", "red")], WORDS_EN)
    assert shown["wrong"].field == "colour"


def test_links_take_a_column_away_or_add_one():
    full = [*GPT2, ("recompute", "full")]
    shown = view(GPT2, full)
    assert shown["columns"][0]["without"] == address([full])
    assert shown["columns"][1]["open"] == "model=gpt2&gpu=rtx-4090&recompute=full"
    added = [columns_of(parse_qsl(addition["query"])) for addition in shown["additions"]]
    assert [column.pairs for column in added[0]] == [GPT2, full, GPT2]
    assert all(len(columns) == 3 and columns[2].estimate for columns in added)
    assert full not in [columns[2].pairs for columns in added]
    assert view(GPT2)["columns"][0]["without"] is None
    assert view(*[GPT2] * len(LETTERS))["additions"] == []


def test_bars_and_curves_share_one_scale():
    memories = [
        calc.estimate(calc.Scenario(model="gpt2", gpu="rtx-4090", micro_batch_size=size)).to_dict()["memory"]
        for size in (1, 4)
    ]
    shown = view(GPT2, [*GPT2, ("micro_batch_size", "4")])
    bars = [column["bar"] for column in shown["columns"]]
    widths = [sum(segment["width"] for segment in bar["segments"]) / bar["needed_bytes"] for bar in bars]
    assert widths[0] == pytest.approx(widths[1])
    drawn = figures.overlay(memories)
    heights = [100 - peak["y"] for peak in drawn["peaks"]]
    peaks = [memory["peak_allocated_bytes"] for memory in memories]
    assert heights[0] / heights[1] == pytest.approx(peaks[0] / peaks[1])
    assert drawn["phases"]
    assert len(drawn["lines"]) == 2


def test_phases_are_marked_only_where_all_curves_have_the_same():
    questions = [{}, {"gradient_accumulation_steps": 2}]
    memories = [calc.estimate(calc.Scenario(model="gpt2", **more)).to_dict()["memory"] for more in questions]
    assert figures.overlay(memories)["phases"] == []
    assert figures.overlay(memories[:1])["phases"]


def test_peaks_that_coincide_share_a_label():
    memory = calc.estimate(calc.Scenario(model="gpt2")).to_dict()["memory"]
    labels = [peak["labels"] for peak in figures.overlay([memory, memory])["peaks"]]
    assert labels == [[0, 1], []]


def test_the_page_answers_its_columns(client):
    page = client.get(
        "/compare", params=lettered(GPT2, [("config", packed_config({"model_type": "gpt2", "n_layer": 2}))])
    )
    assert page.status_code == 200
    assert page.text.count('class="mini"') == 2
    assert 'name="b.config"' in page.text
    assert client.get("/compare").status_code == 200
    assert client.get("/compare", params={"a.model": "t-rex"}).status_code == 422
    chinese = client.get("/compare", params=[*lettered(GPT2), ("lang", "zh")]).text
    assert "并排对比" in chinese
    assert 'href="/?model=gpt2&amp;gpu=rtx-4090&amp;lang=zh"' in chinese


def test_the_other_pages_are_asked_about_the_first_column(client):
    page = client.get("/compare", params=lettered(GPT2, [("model", "qwen3-0.6b")])).text
    assert 'class="carries-query" href="/formulas?model=gpt2&amp;gpu=rtx-4090"' in page
    assert (
        client.get("/?" + page.split('carries-query" href="/?')[1].split('"')[0].replace("&amp;", "&")).status_code
        == 200
    )


def test_query_pairs_of_a_column_are_the_scenarios_own():
    column = columns_of(lettered(query_pairs(EXAMPLE)))[0]
    assert column.scenario == EXAMPLE


def test_a_generations_rows_are_its_own():
    generates = [("model", "gpt2"), ("gpu", "rtx-4090"), ("task", "inference"), ("prompt_length", "64")]
    shown = view(generates, [*generates, ("weight_dtype", "int8")])
    rows = {row["name"]: row for row in shown["rows"]}
    assert rows["time.seconds_per_output_token"]["label"] == WORDS_EN["compared.time.seconds_per_output_token"]
    assert rows["memory.at_peak.kv_cache"]["part"] == "kv_cache"
    assert rows["memory.phases.prefill.peak_allocated_bytes"]["label"] == "peak in prefill"
    assert not {"memory.saved_activation_bytes", "flops.recompute", "parameters.trainable"} & rows.keys()
    (first, none), (second, more) = shown["quantities"]["capacity.most_sequences"]
    assert none == 0 != more == second - first
