"""What `/metrics` says, as Prometheus' own parser reads it."""

import re

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mobilemoe.serve.metrics import Metrics
from places import ROOT
from servers import KEY, running


def samples(text: str) -> dict:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, *sorted(sample.labels.items())] = sample.value
    return found


def test_requests_tokens_and_times_are_counted():
    with running() as server:
        answer = server.client.completions.create(model="nano", prompt="A", max_tokens=5, n=2, temperature=0)
        with pytest.raises(openai.NotFoundError):
            server.client.completions.create(model="gpt-5", prompt="A")
        server.http.get("/nowhere/at/all")
        httpx.get(f"{server.root}/v1/models")
        server.http.get("/v1/models/nano")
        found = samples(server.http.get("/metrics").text)

    def requests(route, status):
        return found["mobilemoe_requests_total", ("route", route), ("status", str(status))]

    assert requests("/v1/completions", 200) == requests("/v1/completions", 404) == 1
    assert requests("/v1/models/{wanted:path}", 200) == 1
    assert requests("other", 404) == 1
    assert requests("other", 401) == 1, "the key is asked before the route"
    made, texts = answer.usage.completion_tokens, 2
    assert found["mobilemoe_generated_tokens_total",] == made == 10
    assert found["mobilemoe_prompt_tokens_total",] == texts * answer.usage.prompt_tokens
    assert found["mobilemoe_time_to_first_token_seconds_count",] == texts
    assert found["mobilemoe_time_per_token_seconds_count",] == made - texts
    assert 0 < found["mobilemoe_time_per_token_seconds_sum",] < 30
    assert found["mobilemoe_running_texts",] == found["mobilemoe_waiting_requests",] == 0
    assert found["process_resident_memory_bytes",] > 2**20


def test_the_document_names_every_number_of_ours():
    with running() as server:
        server.client.completions.create(model="nano", prompt="A", max_tokens=2)
        text = server.http.get("/metrics").text
    families = text_string_to_metric_families(text)
    found = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in families
        if not family.name.endswith("_created")
    }
    document = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    table = document.partition("## What is counted")[2].partition("\n## ")[0]
    assert {name for name in found if name.startswith("mobilemoe_")} == {*re.findall(r"`(mobilemoe_\w+)`", table)}


def test_metrics_need_the_key():
    with running() as server:
        assert httpx.get(f"{server.root}/metrics").status_code == 401
        assert httpx.get(f"{server.root}/metrics", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_a_watched_number_is_read_when_it_is_asked_for():
    metrics, held = Metrics(), [0]
    metrics.watch("mobilemoe_held_bytes", "Bytes held", lambda: held[0], "gauge")
    metrics.watch("mobilemoe_hits", "Hits", lambda: held[0] + 1, "counter")
    held[0] = 7
    found = samples(metrics.text().decode())
    assert (found["mobilemoe_held_bytes",], found["mobilemoe_hits_total",]) == (7, 8)


def test_each_answer_has_an_id_of_its_own():
    with running() as server:
        ids = [server.client.completions.create(model="nano", prompt="A", max_tokens=1)._request_id for _ in range(2)]
        with pytest.raises(openai.NotFoundError) as refused:
            server.client.models.retrieve("gpt-5")
    assert all(each.startswith("req_") for each in [*ids, refused.value.request_id])
    assert len({*ids, refused.value.request_id}) == 3
