import pytest
from fastapi.testclient import TestClient

import calc
from api.app import create_app
from api.settings import Settings

PROBLEM = "application/problem+json"


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("question", "field", "value"),
    [
        ({"model": "gpt2", "micro_batch_size": 0}, "micro_batch_size", 0),
        ({"model": "gpt2", "micro_batch_size": 10**12}, "micro_batch_size", 10**12),
        ({"model": "gpt2", "micro_batch_size": "8"}, "micro_batch_size", "8"),
        ({"model": "gpt2", "sequence_length": 5000}, "sequence_length", 5000),
        ({"model": "gpt2", "precision": "int3"}, "precision", "int3"),
        ({"model": "gpt2", "colour": "red"}, "colour", "red"),
        ({"model": "gpt2", "gpu": "abacus"}, "gpu", "abacus"),
        ({"model": "gpt2", "adapter": {"kind": "lora", "rank": -1}}, "adapter.rank", -1),
        ({"gpu": "h100-sxm-80gb"}, "model", None),
        ({"model": {"model_type": "t-rex"}}, "model.model_type", "t-rex"),
        (
            {"model": {"model_type": "llama", "hidden_size": 100, "num_attention_heads": 3}},
            "model.num_attention_heads",
            3,
        ),
    ],
)
def test_what_cannot_be_answered_names_field_and_value(client, question, field, value):
    answer = client.post("/v1/estimate", json=question)
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    problem = answer.json()
    assert (problem["field"], problem["value"]) == (field, value)
    assert problem["expected"] in problem["detail"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        "",
        "x",
        "[1]",
        "null",
        '{"model": "gpt2"',
        '{"model": "gpt2", "micro_batch_size": NaN}',
        '{"model": "gpt2", "dropout": 1e999}',
        f'{{"model": {nested(100_000)}}}',
    ],
)
def test_a_body_that_is_no_scenario_is_a_bad_request(client, body):
    answer = client.post("/v1/estimate", content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (400, PROBLEM)


def test_deep_nesting_is_a_wrong_value_like_any_other(client):
    answers = [
        client.post("/v1/estimate", content=f'{{"model": {nested(1_000)}}}'),
        client.get("/v1/estimate", params={"model": f'{{"a": {nested(5_000)}}}'}),
        client.get("/", params={"model": f'{{"a": {nested(5_000)}}}'}),
    ]
    assert [answer.status_code for answer in answers] == [422, 422, 422]


@pytest.mark.parametrize("packed", ["", "!", "AAAA", "eJw", "eJyLjgUAARUAuQ"])
def test_a_config_that_cannot_be_unpacked_is_named(client, packed):
    answer = client.get("/v1/estimate", params={"config": packed})
    assert (answer.status_code, answer.json()["field"]) == (422, "config")


def test_a_large_body_is_refused_before_it_is_read(client):
    answer = client.post("/v1/estimate", content=b"0" * 100_000_000)
    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)
    assert client.get("/livez").status_code == 200


def test_a_large_body_of_unknown_length_is_refused_too(client):
    answer = client.post("/v1/estimate", content=(b"0" * 65_536 for _ in range(100)))
    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v1/models/t-rex", 404),
        ("DELETE", "/v1/estimate", 405),
        ("GET", "/v1/solve", 405),
        ("GET", "/v1/compare", 405),
    ],
)
def test_what_is_not_there_is_a_problem(client, method, path, status):
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM)


def test_a_defect_of_ours_tells_the_client_nothing(monkeypatch):
    def broken(_scenario):
        raise RuntimeError("secret")

    with TestClient(create_app(Settings()), raise_server_exceptions=False) as client:
        monkeypatch.setattr(calc, "estimate", broken)
        answer = client.post("/v1/estimate", json={"model": {"model_type": "gpt2"}})
    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM)
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
