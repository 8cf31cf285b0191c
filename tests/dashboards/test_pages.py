from html.parser import HTMLParser
from itertools import chain
from urllib.parse import parse_qsl

import pytest
from fastapi.testclient import TestClient

import calc
from api.app import create_app
from api.settings import Settings
from calc.cache_groups import GROUPED_TYPES
from dashboards.address import scenario_from_query
from dashboards.form import CHOICES, FIELDS, READ_WITH
from dashboards.views import ledger


class Elements(HTMLParser):
    """All start tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def client():
    with TestClient(create_app(Settings())) as client:
        yield client


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/serve?whole=1", "/compare", "/formulas", "/docs", "/?lang=zh", "/?model=gpt2&micro_batch_size=-1"),
        "/formulas?task=inference&model=gpt2&lang=zh",
    ],
)
def test_pages_keep_the_policy_and_load_nothing_from_elsewhere(client, path):
    html = client.get(path).text
    for tag, attributes in Elements(html).found:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert tag != "style"
        for link in ("src", "href"):
            assert not (attributes.get(link) or "").startswith(("http", "//"))
        if tag in ("script", "link", "img") and attributes.get("type") != "application/json":
            address = attributes.get("src") or attributes.get("href") or ""
            assert client.get(address).status_code == 200, address


def test_the_first_visit_shows_a_filled_example(client):
    html = client.get("/").text
    assert "llama-3.1-8b" in html
    assert "h100-sxm-80gb" in html
    assert "Fits." in html


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in CHOICES for value in CHOICES[name] if value])
def test_every_choice_that_is_offered_is_answered(client, name, value):
    companions = {
        "adapter.dtype": {"adapter.kind": "lora"},
        "adapter.use_dora": {"adapter.kind": "lora"},
        "adapter.bnb_4bit_use_double_quant": {"adapter.kind": "qlora"},
        "adapter.prefix_projection": {"adapter.kind": "prefix-tuning"},
        "recompute_offload": {"recompute": "full"},
        "problem_type": {"num_labels": "3"},
        "accumulate_grads_in_fp32": {"precision": "bf16"},
        "implementation": {"precision": "bf16", "model": "gpt2"},
        "output_router_logits": {"model": "mixtral-8x7b"},
        "experts_implementation": {"model": "mixtral-8x7b"},
        "efficient": {"model": "gpt2"},
        "weight_dtype": {"task": "inference"},
        "logits_to_keep": {"task": "inference"},
        "mxfp4": {"model": "gpt-oss-20b"},
        "quantized": {"kv_cache_dtype": "fp8"},
        "cache_implementation": {"task": "inference"},
        **{name: {"cache_implementation": "quantized", "page_size": ""} for name in GROUPED_TYPES},
        "kv_cache_dtype": {"task": "inference", "page_size": "16"},
        "disable_hybrid_kv_cache_manager": {"task": "inference", "page_size": "16"},
    }
    query = {"model": "llama-3.2-1b", name: value} | companions.get(name, {}) | companions.get(value, {})
    reply = client.get("/answer", params=query).json()
    assert reply["problem"] is None, reply["problem"]


def test_the_form_holds_what_the_address_says(client):
    query = {"model": "gpt2", "gpu": "rtx-4090", "micro_batch_size": "7", "adapter.kind": "lora", "adapter.rank": "3"}
    query |= {"precision": "fp32", "attention": "eager"}
    shown = {}
    chosen = None
    for tag, attributes in Elements(client.get("/", params=query).text).found:
        if tag == "select":
            chosen = attributes["name"]
        elif tag == "option" and "selected" in attributes:
            shown[chosen] = attributes["value"]
        elif (
            tag == "input" and attributes.get("name") and (attributes.get("type") != "radio" or "checked" in attributes)
        ):
            shown[attributes["name"]] = attributes["value"]
    assert {name: shown[name] for name in query} == query


def test_a_field_is_shown_with_the_values_that_read_it(client):
    def hidden(**query):
        fields = [attributes for _, attributes in Elements(client.get("/", params=query).text).found]
        boxes = [attributes for attributes in fields if attributes.get("data-when") in {"recompute", "adapter.kind"}]
        return [(box["data-when"], str(box["data-is"])) for box in boxes if "hidden" in box]

    assert len(hidden(model="gpt2")) == sum(other != "task" for other, _ in READ_WITH.values())
    full = hidden(model="gpt2", recompute="full")
    assert [values for when, values in full if when == "recompute"] == ["operators"]
    assert ("recompute", "full") in hidden(model="gpt2", recompute="selective")
    ia3 = hidden(**{"model": "gpt2", "adapter.kind": "ia3"})
    assert all("ia3" not in kinds.split() for when, kinds in ia3 if when == "adapter.kind")
    assert ("adapter.kind", "lora") in ia3


def test_what_is_wrong_with_a_field_that_is_not_read_is_in_sight(client):
    page = client.get("/", params={"model": "gpt2", "recompute_interval": "2"})
    boxes = [box for _, box in Elements(page.text).found if box.get("data-when") == "recompute"]
    assert [box for box in boxes if "hidden" not in box]
    assert "2: should be 1 unless recompute is" in page.text


def test_the_form_has_the_fields_that_complaints_know(client):
    html = client.get("/").text
    assert {attributes["id"] for _, attributes in Elements(html).found if "id" in attributes} >= FIELDS - {"config"}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"model": "gpt2", "sequence_length": "5000"}, "sequence_length"),
        ({"model": "t-rex"}, "model"),
        ({"model": "gpt2", "adapter.kind": "lora", "adapter.target_modules": "nose"}, "adapter.target_modules"),
    ],
)
def test_a_wrong_field_is_named_beside_it(client, query, field):
    page = client.get("/", params=query)
    assert page.status_code == 422
    assert f'id="problem-{field}" data-field="{field}">' in page.text
    assert client.get("/answer", params=query).json()["problem"]["field"] == field


def test_a_wrong_field_that_the_form_lacks_is_named_below_it(client):
    page = client.get("/", params={"model": "gpt2", "parallel.tensor": "8"})
    assert page.status_code == 422
    assert "parallel.tensor = 8" in page.text


def test_a_config_too_long_for_an_address_is_posted(client):
    config = '{"model_type": "gpt2", "note": "%s"}' % ("x" * 100_000)
    question = {"model": config, "gpu": "rtx-4090"}
    reply = client.post("/answer", data=question).json()
    assert reply["problem"] is None
    assert "Fits." in reply["slots"]["summary"]
    assert applied(client.post("/answer/remedies", data=question).json()["slots"]["advice"])


def applied(html):
    """The links that change the question."""
    return [attributes["href"] or "" for _, attributes in Elements(html).found if attributes.get("class") == "apply"]


def test_does_not_fit_says_by_how_much_and_offers_what_does(client):
    query = {"model": "llama-3.1-8b", "gpu": "a100-sxm-80gb", "micro_batch_size": "4"}
    summary = client.get("/answer", params=query).json()["slots"]["summary"]
    assert "Does not fit." in summary
    assert "too much" in summary
    links = applied(client.get("/answer/remedies", params=query).json()["slots"]["largest"])
    assert len(links) == 2
    for link in links:
        assert "Fits." in client.get(link).text


@pytest.mark.parametrize("asked", [{}, {"micro_batch_size": "3", "sequence_length": "700"}])
def test_the_largest_sizes_and_the_smallest_gpu_are_links_to_what_fits(client, asked):
    query = {"model": "gpt2", "gpu": "h100-sxm-80gb", "recompute": "full", **asked}
    links = applied(client.get("/answer/remedies", params=query).json()["slots"]["largest"])
    scenario = scenario_from_query(query.items())
    batch, sequence = (calc.solve(scenario, maximise=size).value for size in ("micro_batch_size", "sequence_length"))
    gpu = calc.solve(scenario, minimise="gpu").value
    changes = [{"micro_batch_size": batch}, *([{"sequence_length": sequence}] if asked else []), {"gpu": gpu}]
    expected = [scenario.model_copy(update=change) for change in changes]
    assert [scenario_from_query(parse_qsl(link.removeprefix("/?"))) for link in links] == expected
    assert all("Fits." in client.get(link).text for link in links)


def test_a_page_asked_for_whole_needs_no_script(client):
    query = {"model": "gpt2", "gpu": "rtx-4090", "recompute": "full"}
    slots = [client.get(f"/answer/{stage}", params=query).json()["slots"] for stage in ("remedies", "tradeoff")]
    page = client.get("/", params={**query, "whole": "1"}).text
    assert all(text in page for stage in slots for text in stage.values())
    assert not any(text in client.get("/", params=query).text for stage in slots for text in stage.values())


def test_a_stage_that_is_not_is_refused(client):
    assert client.get("/answer/nothing").status_code == 422


def test_without_a_gpu_only_the_smallest_one_is_named(client):
    slot = client.get("/answer/remedies", params={"model": "gpt2"}).json()["slots"]["largest"]
    assert len(applied(slot)) == 1
    assert "Largest that fits" not in slot


def test_what_fits_nothing_has_no_link(client):
    slot = client.get("/answer/remedies", params={"model": "gpt3-175b", "gpu": "rtx-4090"}).json()["slots"]["largest"]
    assert applied(slot) == []
    for words in ("no micro-batch", "no sequence", "none holds it"):
        assert words in slot


@pytest.mark.parametrize(
    "question",
    [
        {"model": "llama-3.1-8b", "gpu": "h100-sxm-80gb", "recompute": "full"},
        {"model": "gpt2", "adapter": {"kind": "lora"}, "micro_batch_size": 4},
        {"model": "qwen3-0.6b", "precision": "zero-16", "gradient_accumulation_steps": 2},
    ],
)
def test_the_ledger_rows_behind_a_part_add_up_to_it(question):
    parts = ledger(calc.estimate(calc.Scenario(**question)).to_dict())
    with_rows = [part for part in parts if part["rows"]]
    assert {part["name"] for part in parts} - {part["name"] for part in with_rows} <= {"library_workspace", "context"}
    for part in with_rows:
        assert sum(row["together"] for row in part["rows"]) == part["bytes"], part["name"]


def test_the_formulas_page_shows_every_founding_formula_with_the_users_numbers(client):
    html = client.get("/formulas", params={"model": "gpt3-175b", "sequence_length": "1024"}).text
    assert "174,579,068,928" in html
    assert "34·B·S·H + 5·B·N·S²" in html
    ids = {attributes.get("id") for tag, attributes in Elements(html).found if tag == "article"}
    assert len(ids) > 10


def test_static_files_are_kept_for_ever_under_an_address_of_their_content(client):
    pages = chain.from_iterable(Elements(client.get(path).text).found for path in ("/", "/docs"))
    addresses = {
        attributes.get("href") or attributes.get("src") for tag, attributes in pages if tag in ("script", "link")
    }
    for address in addresses - {None}:
        assert "immutable" in client.get(address).headers["cache-control"]
