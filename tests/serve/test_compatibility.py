"""The tables of docs/serving.md: each row has a check, and no field of the official clients is missing in them."""

import functools
import re
from dataclasses import dataclass

import anthropic
import openai
import pytest
from anthropic.types import message_create_params as messages_fields
from openai.types import completion_create_params as completion_fields
from openai.types.chat import completion_create_params as chat_fields
from openai.types.responses import response_create_params as responses_fields

import compatibility_checks  # noqa: F401  they register themselves
import compatibility_items  # noqa: F401
from compatibility_api import CHECKS, SAMPLES, Api
from mobilemoe.serve.messages_wire import MessagesRequest
from mobilemoe.serve.responses_wire import ResponsesRequest
from mobilemoe.serve.wire import ChatRequest, CompletionRequest
from places import ROOT
from servers import running

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"


@dataclass(frozen=True)
class Row:
    route: str
    field: str  # empty for the route itself
    state: str

    def __str__(self) -> str:
        return f"{self.route} {self.field}".strip()


def rows() -> list[Row]:
    """A row of a table counts once for each name in its first cell, and for each route in its heading."""
    found, routes = [], []
    for line in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            routes = re.findall(r"`(/\S+)`", line)
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and cells[1] in ("yes", "ignored", "refused"):
            names = re.findall(r"`([^`]+)`", cells[0])
            found += [Row(route, name, cells[1]) for route in routes for name in names]
            found += [Row(name, "", cells[1]) for name in names if not routes]
    return found


ROWS = rows()


@pytest.fixture(scope="module")
def api():
    with running("--parallel", "4", seed=None) as server:
        yield Api(server.http)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_server_does_what_the_table_says(row, api):
    if row.state == "yes":
        CHECKS[row.route, row.field](api, row.route)
    elif not row.field:
        method, _, path = row.route.rpartition(" ")
        response = api.http.request(method or "GET", path, json={} if method == "POST" else None)
        assert response.status_code == 404
        assert re.search("no such route|not offered", response.json()["error"]["message"])
    elif row.state == "ignored":
        body = api.post(row.route, max_tokens=2, **{row.field: SAMPLES[row.field]})
        assert f"{row.field} is ignored" in body["x_mobilemoe"]["warnings"]
    else:
        response = api.ask(row.route, **{row.field: SAMPLES[row.field]})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["message"].startswith(f"{row.field} is not offered")
        assert row.route == MESSAGES or (error["param"], error["code"]) == (row.field, "unsupported_parameter")


def test_no_row_stands_twice_and_no_check_is_without_a_row():
    keys = [(row.route, row.field) for row in ROWS]
    assert len({*keys}) == len(keys) > 100
    assert CHECKS.keys() == {(row.route, row.field) for row in ROWS if row.state == "yes"}


@pytest.mark.parametrize(
    ("route", "fields", "ours"),
    [
        (CHAT, chat_fields.CompletionCreateParamsBase, ChatRequest),
        (COMPLETIONS, completion_fields.CompletionCreateParamsBase, CompletionRequest),
        (RESPONSES, responses_fields.ResponseCreateParamsBase, ResponsesRequest),
        (MESSAGES, messages_fields.MessageCreateParamsBase, MessagesRequest),
    ],
    ids=[CHAT, COMPLETIONS, RESPONSES, MESSAGES],
)
def test_every_field_of_the_official_client_and_of_ours_has_a_row(route, fields, ours):
    named = {row.field for row in ROWS if row.route == route}
    assert named == {*fields.__annotations__, *ours.model_fields}


def test_every_resource_of_the_official_clients_has_a_row():
    elsewhere = {"webhooks", "beta", "with_raw_response", "with_streaming_response", "chat", "admin"}
    paths = {part for row in ROWS if not row.field for part in row.route.split("/")}
    for client in (openai.OpenAI, anthropic.Anthropic):
        resources = {name for name, value in vars(client).items() if isinstance(value, functools.cached_property)}
        assert resources - elsewhere <= paths


def test_no_route_of_the_server_is_missing():
    with running() as server:
        described = server.http.get("/openapi.json").json()["paths"]
    offered = {
        (method.upper(), re.sub(r"\{wanted[^}]*\}", "NAME", path).replace("{identity}", "ID"))
        for path, methods in described.items()
        for method in methods
    }
    named = {tuple(row.route.split(" ")) for row in ROWS if " " in row.route and row.state == "yes"}
    assert offered | {("GET", "/"), ("GET", "/openapi.json")} == named


def test_a_field_that_nobody_knows_is_an_error(api):
    for route in (CHAT, COMPLETIONS, RESPONSES, MESSAGES):
        response = api.ask(route, max_toke=3)
        assert response.status_code == 400
        assert "max_toke" in response.json()["error"]["message"]
