"""How the checks of the tables in docs/serving.md ask the server, by plain HTTP, and where they are registered.

A check gets the API and the route that the row is about; `CHECKS` has them by route and field.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
QUESTION = "What is 58 minus 23?"
USER = [{"role": "user", "content": QUESTION}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"type": "integer", "maximum": 99}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
_BASES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": USER, "temperature": 0},
    COMPLETIONS: {"prompt": "Once upon a time", "temperature": 0},
    RESPONSES: {"input": QUESTION, "temperature": 0},
    MESSAGES: {"messages": USER, "temperature": 0, "max_tokens": 100},
}
# Values of fields that are ignored or refused.
SAMPLES: dict[str, Any] = {
    "access_programs": {"cyber": "standard"},
    "audio": {"voice": "alloy", "format": "wav"},
    "background": True,
    "background_options": {"completion_window": "soonest"},
    "cache_control": {"type": "ephemeral"},
    "container": "container_1",
    "context_management": [{"type": "compaction"}],
    "conversation": "conv_1",
    "diagnostics": {},
    "function_call": {"name": "add"},
    "functions": [{"name": "add"}],
    "image": {"context_compression": "auto"},
    "inference_geo": "eu",
    "max_tool_calls": 2,
    "metadata": {"user_id": "x"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "prediction": {"type": "content", "content": "x"},
    "prompt": {"id": "pmpt_1"},
    "prompt_cache_key": "x",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "reasoning": {"effort": "low"},
    "reasoning_effort": "low",
    "safety_identifier": "x",
    "service_tier": "auto",
    "speed": "standard",
    "store": False,
    "suffix": "the end",
    "truncation": "auto",
    "user": "somebody",
    "user_profile_id": "x",
    "verbosity": "low",
    "web_search_options": {},
    "workspace_id": "x",
}


class Api:
    """Asks each route with a minimal request, changed by `fields`."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def ask(self, route: str, **fields: Any) -> httpx.Response:
        body = {"model": "nano", **_BASES[route], **fields}
        if route == RESPONSES and "max_tokens" in body:
            body["max_output_tokens"] = body.pop("max_tokens")
        return self.http.post(route, json=body)

    def post(self, route: str, **fields: Any) -> dict[str, Any]:
        response = self.ask(route, **fields)
        assert response.status_code == 200, response.text
        return response.json()

    def text(self, route: str, **fields: Any) -> str:
        return texts(self.post(route, **fields))[0]

    def refuses(self, route: str, field: str, value: Any, **fields: Any) -> None:
        response = self.ask(route, **{field: value}, **fields)
        assert response.status_code == 400, response.text
        assert field in response.json()["error"]["message"]

    def events(self, route: str, **fields: Any) -> list[dict[str, Any]]:
        lines = self.ask(route, stream=True, **fields).text.splitlines()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [json.loads(each) for each in data if each != "[DONE]"]


def texts(body: dict[str, Any]) -> list[str]:
    """The texts of an answer of any protocol."""
    if "choices" in body:
        return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in body["choices"]]
    if "output" in body:
        return [item["content"][0]["text"] for item in body["output"] if item["type"] == "message"]
    return ["".join(block["text"] for block in body["content"] if block["type"] == "text")]


def written(body: dict[str, Any]) -> int:
    """The number of tokens written."""
    return body["usage"].get("completion_tokens", body["usage"].get("output_tokens"))


def function(strict: bool = True) -> dict[str, Any]:
    return {"name": "add", "description": "Adds two numbers.", "parameters": SCHEMA, "strict": strict}


Check = Callable[[Api, str], None]
CHECKS: dict[tuple[str, str], Check] = {}


def check(field: str, *routes: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        CHECKS.update({(route, field): function for route in routes})
        return function

    return register
