import json
import re
from collections import Counter

import pytest
from fastapi.testclient import TestClient

import calc
from api.app import create_app
from api.settings import Settings


def test_the_catalogue_is_listed(client):
    assert [model["name"] for model in client.get("/v1/models").json()] == [model.name for model in calc.models()]
    assert [gpu["name"] for gpu in client.get("/v1/gpus").json()] == [gpu.name for gpu in calc.gpus()]


def test_the_lists_are_filtered_and_sorted(client):
    listed = client.get("/v1/models?family=llama&min_parameters=7B&sort=parameters&descending=true").json()
    assert listed[0]["name"] == "llama-3.1-405b"
    assert [model["parameters"] for model in listed] == sorted((model["parameters"] for model in listed), reverse=True)
    assert {model["family"] for model in listed} == {"llama"}
    listed = client.get("/v1/gpus?name=h100&sort=bandwidth").json()
    assert [gpu["name"] for gpu in listed] == ["h100-pcie-80gb", "h100-sxm-80gb", "h100-nvl-94gb"]


def test_a_list_that_cannot_be_meant_is_a_problem(client):
    answer = client.get("/v1/gpus?vendor=nvida")
    assert answer.status_code == 422
    assert (answer.json()["field"], answer.json()["value"]) == ("vendor", "nvida")


def test_one_model_is_found_by_every_name(client):
    assert client.get("/v1/models/gpt2").json()["config"]["n_embd"] == 768
    assert client.get("/v1/models/gpt2-124m").json()["name"] == "gpt2"
    assert client.get("/v1/models/openai-community/GPT2").json()["name"] == "gpt2"
    [awq, fp8] = client.get("/v1/models/qwen3-32b").json()["quantised_checkpoints"]
    assert (awq["hub_id"], fp8["total_bytes"]) == ("Qwen/Qwen3-32B-AWQ", fp8["published_bytes"]["total"])


def test_no_such_model_is_answered_with_the_nearest(client):
    answer = client.get("/v1/models/meta-lama/Llama-3.1-8B")
    assert answer.status_code == 404
    assert "did you mean llama-3.1-8b" in answer.json()["detail"]


def test_the_accuracy_is_that_of_the_records(client):
    accuracy = client.get("/v1/accuracy").json()
    assert set(accuracy) == {"measurement", "trace", "counts", "statistics", "points", "published"}
    kinds = Counter(point["kind"] for point in accuracy["points"].values())
    for source in ("measurement", "trace"):
        assert all(entry["cases"] > 0 for entry in accuracy[source].values())
        assert accuracy["counts"][source]["cases"] == kinds[source]
        for quantity, statistics in accuracy["statistics"][source].items():
            recorded = [point for point in accuracy["points"].values() if quantity in point["quantities"]]
            assert statistics["all"]["cases"] == sum(point["kind"] == source for point in recorded)


def test_it_says_that_it_lives_and_answers(client):
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_requests_are_counted(client):
    client.get("/livez")
    metrics = client.get("/metrics").text
    counted = re.search(r'http_requests_total\{handler="/livez",method="GET",status="2xx"\} (\d+)', metrics)
    assert counted
    assert int(counted[1]) >= 1


@pytest.mark.parametrize("path", ["/", "/formulas", "/docs", "/v1/gpus", "/nothing", "/openapi.json"])
def test_every_answer_forbids_what_the_page_does_not_need(client, path):
    headers = client.get(path).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"


def test_the_document_names_every_field_of_the_scenario(client):
    document = client.get("/openapi.json").json()
    estimate = document["paths"]["/v1/estimate"]
    assert document["openapi"].startswith("3.1")
    assert estimate["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Scenario")
    named = {parameter["name"].split(".")[0] for parameter in estimate["get"]["parameters"]}
    assert named >= set(calc.Scenario.model_fields)
    listings = {path: document["paths"][path]["get"]["parameters"] for path in ("/v1/models", "/v1/gpus")}
    assert {"family", "min_parameters", "sort"} <= {parameter["name"] for parameter in listings["/v1/models"]}
    assert {"vendor", "min_memory_gib", "sort"} <= {parameter["name"] for parameter in listings["/v1/gpus"]}
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]


def test_the_access_log_is_quiet_until_asked(capsys):
    for wanted in (False, True):
        with TestClient(create_app(Settings(access_log=wanted))) as client:
            client.get("/livez")
        written = capsys.readouterr()
        assert ("/livez" in written.out + written.err) is wanted


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("GPUCALC_MAX_BODY_BYTES", "10")
    with TestClient(create_app()) as client:
        assert client.post("/v1/estimate", json={"model": "gpt2"}).status_code == 413
