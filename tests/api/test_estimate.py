import json

import pytest

import calc
from api.routes import remembered_answer
from dashboards.address import packed_config

LLAMA = {"model": "llama-3.1-8b", "gpu": "h100-sxm-80gb", "recompute": "full"}
INLINE = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 100}


def test_a_body_gets_what_python_gets(client):
    answer = client.post("/v1/estimate", json=LLAMA)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(calc.estimate(calc.Scenario.model_validate(LLAMA)).to_dict()))


def test_a_query_string_gets_the_same_answer(client):
    nested = {**LLAMA, "adapter": {"kind": "lora", "rank": 4}}
    query = {**LLAMA, "adapter.kind": "lora", "adapter.rank": 4}
    assert client.get("/v1/estimate", params=query).content == client.post("/v1/estimate", json=nested).content


def test_an_inline_config_is_taken_as_json_and_packed(client):
    answers = [
        client.post("/v1/estimate", json={"model": INLINE}),
        client.get("/v1/estimate", params={"model": json.dumps(INLINE)}),
        client.get("/v1/estimate", params={"config": packed_config(INLINE)}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len({answer.content for answer in answers}) == 1


def test_a_known_answer_is_not_sent_again(client):
    first = client.get("/v1/estimate", params=LLAMA)
    assert first.headers["cache-control"] == "public, max-age=300"
    again = client.get("/v1/estimate", params=LLAMA, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = {**LLAMA, "micro_batch_size": 2}
    changed = client.get("/v1/estimate", params=other, headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200


def test_integers_beyond_64_bits_stay_exact(client):
    huge = {"model": "llama-3.1-405b", "micro_batch_size": 10**9, "sequence_length": 10**9}
    total = client.post("/v1/estimate", json=huge).json()["flops"]["total"]
    assert total > 2**64
    assert total == calc.estimate(calc.Scenario.model_validate(huge)).flops.total


def test_a_million_layers_take_no_time(client):
    answer = client.post("/v1/estimate", json={"model": {**INLINE, "num_hidden_layers": 10**6}})
    assert answer.status_code == 200
    assert len(answer.content) < 200_000


@pytest.mark.parametrize("model", ["/etc/passwd", "../config.json", "config.json", "someone/some-model"])
def test_no_path_and_no_hub_id_is_read(client, model):
    problem = client.post("/v1/estimate", json={"model": model})
    assert problem.status_code == 422
    assert problem.json()["field"] == "model"
    assert "paths and the hub are not read" in problem.json()["expected"]


def test_a_quantised_checkpoint_of_the_catalogue_is_read(client):
    asked = {"model": "Qwen/Qwen3-32B-AWQ", "task": "inference", "prompt_length": 100}
    answer = client.post("/v1/estimate", json=asked)
    assert answer.status_code == 200
    assert answer.json()["memory"]["persistent_bytes"]["parameters"] < 20e9
    assert "quantised checkpoint" in client.post("/v1/estimate", json={"model": asked["model"]}).json()["expected"]


def test_remembered_answers_are_those_of_the_catalogues_models(client):
    before = remembered_answer.cache_info()
    for _ in range(2):
        client.post("/v1/estimate", json={"model": "gpt2", "micro_batch_size": 4321})
        client.post("/v1/estimate", json={"model": {**INLINE, "vocab_size": 4321}})
    after = remembered_answer.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 1)


@pytest.mark.parametrize("model", ["gpt2", {"model_type": "gpt2", "n_layer": 2}])
def test_reserved_bytes_are_answered_when_asked_for(client, model):
    fields = {"model": model, "gpu": "a100-sxm-80gb", "sequence_length": 64}
    estimate = calc.estimate(calc.Scenario(**fields))
    for query, expected in (("", None), ("?reserved=false", None), ("?reserved=true", estimate.memory.device_bytes)):
        memory = client.post(f"/v1/estimate{query}", json=fields).json()["memory"]
        assert memory["device_bytes"] == expected
    asked = {"model": json.dumps(model) if isinstance(model, dict) else model, "gpu": "a100-sxm-80gb"}
    answer = client.get("/v1/estimate", params=asked | {"sequence_length": 64, "reserved": "true"})
    assert answer.json()["memory"]["peak_reserved_bytes"] == estimate.memory.peak_reserved_bytes


@pytest.mark.parametrize(
    ("query", "field"), [("?reserved=perhaps", "reserved"), ("?micro_batch_size=2", "micro_batch_size")]
)
def test_a_posted_scenario_has_no_other_parameters(client, query, field):
    answer = client.post(f"/v1/estimate{query}", json={"model": "gpt2"})
    assert (answer.status_code, answer.json()["field"]) == (422, field)
