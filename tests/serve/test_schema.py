"""The OpenAPI schema is true: what the server answers is what it says, whatever is asked."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from mobilemoe.serve.answers_wire import ChatCompletion, Completion
from servers import KEY, running

HOOKS = Path(__file__).parents[1] / "helpers" / "schemathesis_hooks.py"
# All but `positive_data_acceptance`: no schema says that a text fits the context, or that two fields go together.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,negative_data_rejection,missing_required_header,unsupported_method,ignored_auth"
)


@pytest.fixture(scope="module")
def schema(server):
    return server.http.get("/openapi.json").json()


def operations(schema):
    return [(path, method, found) for path, each in schema["paths"].items() for method, found in each.items()]


def test_the_schema_needs_the_key_and_names_it(server, schema):
    assert httpx.get(f"{server.root}/openapi.json").status_code == 401
    assert schema["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert {"key": []} in schema["security"]
    assert [path for path, _, found in operations(schema) if found.get("security") == []] == ["/health"]


def test_a_server_without_a_key_asks_for_none_in_its_schema():
    with running(key=None) as server:
        schema = server.http.get("/openapi.json").json()
    assert "security" not in schema


def test_every_route_says_what_it_answers(schema):
    """A new route needs its line in `mobilemoe.serve.schema`."""
    names = [found["operationId"] for _, _, found in operations(schema)]
    assert len(names) == len({*names})
    for path, method, found in operations(schema):
        contents = found["responses"]["200"]["content"]
        assert contents, (method, path)
        assert {"$ref"} == {*contents.get("application/json", {"schema": {"$ref": ""}})["schema"]}, (method, path)
        assert "422" not in found["responses"]
        assert "default" in found["responses"]


def test_every_reference_of_the_schema_leads_somewhere(schema):
    def references(node):
        if isinstance(node, dict):
            yield from [node["$ref"]] if "$ref" in node else []
            node = [*node.values()]
        if isinstance(node, list):
            for each in node:
                yield from references(each)

    found = {*references(schema)}
    assert found
    assert {each.removeprefix("#/components/schemas/") for each in found} <= schema["components"]["schemas"].keys()


def test_full_answers_are_as_the_schema_says(server):
    """With everything in them that may be: schemathesis seldom asks for so much."""
    full = {"model": "nano", "n": 2, "user": "me", "x_mobilemoe": {"routing": True}, "max_tokens": 5}
    asked = full | {"messages": [{"role": "user", "content": "What is 58 minus 23?"}], "logprobs": True}
    answer = ChatCompletion.model_validate_json(
        server.http.post("/v1/chat/completions", json=asked | {"top_logprobs": 3}).text, strict=True
    )
    assert answer.choices[1].x_mobilemoe.routing
    assert answer.choices[1].logprobs.content[0].top_logprobs
    assert answer.x_mobilemoe.warnings
    asked = full | {"prompt": "Once upon a time", "logprobs": 3}
    found = Completion.model_validate_json(server.http.post("/v1/completions", json=asked).text, strict=True)
    assert found.choices[1].logprobs.top_logprobs[0]


def asked_by_schemathesis(server, folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.root}/openapi.json", "--seed", "1"]
    command += ["--header", f"Authorization: Bearer {KEY}", "--checks", CHECKS, "--mode", "all", "--no-color", *options]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS)}
    # It keeps what it found in the folder where it runs.
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    assert server.health() == {"status": "ready", "running": 0, "waiting": 0}


def test_schemathesis_finds_no_answer_that_the_schema_does_not_have(server, tmp_path):
    asked_by_schemathesis(server, tmp_path, "--phases", "fuzzing", "--max-examples", "8")


@pytest.mark.slow
def test_schemathesis_finds_none_in_thousands_of_requests_either(server, tmp_path):
    asked_by_schemathesis(server, tmp_path, "--phases", "coverage,fuzzing,stateful", "--max-examples", "60")
