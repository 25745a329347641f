"""The server's OpenAPI schema, for generators of clients: what each answer holds, its errors, and its key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mobilemoe.serve import answers_wire, messages_wire, responses_wire, wire

_REFERENCE = "#/components/schemas/{model}"
_FOREIGN = ("HTTPValidationError", "ValidationError")  # FastAPI's own errors, which the server does not send

# What a route answers with, where it is JSON.
ANSWERS: dict[tuple[str, str], type[BaseModel]] = {
    ("get", "/health"): answers_wire.Health,
    ("get", "/v1/models"): answers_wire.ModelList,
    ("get", "/v1/models/{wanted}"): answers_wire.ModelCard,
    ("post", "/v1/chat/completions"): answers_wire.ChatCompletion,
    ("post", "/v1/completions"): answers_wire.Completion,
    ("post", "/v1/responses"): answers_wire.Response,
    ("post", "/v1/responses/input_tokens"): answers_wire.ResponseTokens,
    ("get", "/v1/responses/{identity}"): answers_wire.Response,
    ("delete", "/v1/responses/{identity}"): answers_wire.Deleted,
    ("post", "/v1/messages"): answers_wire.AssistantMessage,
    ("post", "/v1/messages/count_tokens"): answers_wire.TokenCount,
    ("post", "/tokenize"): answers_wire.Tokens,
    ("post", "/detokenize"): answers_wire.Text,
}
# Of requests that take more fields than they name: those that are ignored, and those not offered with their values.
EXTRA: dict[str, tuple[frozenset[str], dict[str, tuple[Any, ...]]]] = {
    "ChatRequest": (wire.IGNORED, wire.NOT_OFFERED),
    "CompletionRequest": (wire.IGNORED, wire.NOT_OFFERED),
    "CountRequest": (messages_wire.IGNORED, messages_wire.NOT_OFFERED),
    "MessagesRequest": (messages_wire.IGNORED, messages_wire.NOT_OFFERED),
    "ResponsesRequest": (responses_wire.IGNORED, responses_wire.NOT_OFFERED),
}
STREAMS = [("post", f"/v1/{each}") for each in ("chat/completions", "completions", "responses", "messages")]
TEXTS = ("/metrics",)


def add_schema(app: FastAPI, names: Sequence[str], *, with_key: bool) -> None:
    """Makes `app` describe itself truly; FastAPI alone knows the bodies of requests, but no answer.

    `names` are those of the model.
    """
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(plain(), names, with_key)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _completed(schema: dict[str, Any], names: Sequence[str], with_key: bool) -> dict[str, Any]:
    schema["info"]["version"] = version("mobilemoe")
    schemas = schema["components"]["schemas"]
    for name in _FOREIGN:
        schemas.pop(name, None)
    for name, each in schemas.items():
        _complete_request(name, each, names)
    answers: list[type[BaseModel]] = [answers_wire.Error, answers_wire.MessageError, *ANSWERS.values()]
    _, found = models_json_schema([(each, "serialization") for each in answers], ref_template=_REFERENCE)
    if common := schemas.keys() & found["$defs"].keys():
        raise AssertionError(f"requests and answers have models of one name: {common}")
    schemas.update(found["$defs"])
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            _complete_operation(method, path, operation)
    if with_key:
        schema["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},  # as Anthropic's clients send it
        }
        schema["security"] = [{"key": []}, {"x-api-key": []}]
        schema["paths"]["/health"]["get"]["security"] = []
    return schema


def _complete_operation(method: str, path: str, operation: dict[str, Any]) -> None:
    operation["operationId"] = re.sub(r"\W+", "_", f"{method}{path}").strip("_")
    json = ANSWERS.get((method, path))
    whole: dict[str, Any] = {} if json is None else {"application/json": {"schema": _reference(json)}}
    stream: dict[str, Any] = {"text/event-stream": {}} if (method, path) in STREAMS else {}
    text = {"text/plain": {"schema": {"type": "string"}}} if path in TEXTS else {}
    answer = {"description": "The answer", "content": whole | stream | text}
    fault = answers_wire.MessageError if path.startswith("/v1/messages") else answers_wire.Error
    error = {"description": "An error", "content": {"application/json": {"schema": _reference(fault)}}}
    operation["responses"] = {"200": answer, "default": error}
    if path == "/health":
        operation["responses"]["503"] = answer


def _complete_request(name: str, schema: dict[str, Any], names: Sequence[str]) -> None:
    """A field that may be left out may also be null, and what is ignored or not offered is no secret."""
    if schema.get("type") != "object":
        return
    fields = schema["properties"]
    if schema.get("additionalProperties") is True:
        ignored, not_offered = EXTRA.get(name, (frozenset(), {}))
        for each in ignored - fields.keys():
            fields[each] = {"description": "It is accepted and ignored."}
        for each, values in not_offered.items():
            fields.setdefault(each, {"enum": list(values), "description": "It is not offered."})
        schema["additionalProperties"] = False
    if "model" in fields:
        fields["model"] = {"type": "string", "enum": list(names)}
    for each, field in fields.items():
        if each not in schema.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
            fields[each] = {"anyOf": [field, {"type": "null"}]}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}
