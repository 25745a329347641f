"""OpenAI's Responses API, on top of the answers of chats."""

from __future__ import annotations

import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response

from mobilemoe.serve.answers import ChatAnswer
from mobilemoe.serve.desk import Desk
from mobilemoe.serve.errors import ApiError
from mobilemoe.serve.order import Events, whole, written
from mobilemoe.serve.responses_items import Event, Items
from mobilemoe.serve.responses_wire import Messages, ResponsesRequest
from mobilemoe.serve.scheduler import Step

STORED_BYTES = 32 * 2**20  # of JSON, in memory; the oldest responses go first


@dataclass(frozen=True)
class _Stored:
    response: dict[str, Any]
    messages: Messages  # the conversation up to and with the response, without instructions
    size: int


class _Store:
    """Responses that can be asked for and continued until newer ones need their memory, or the server ends.

    For the event loop's thread.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Stored] = OrderedDict()
        self._bytes = 0

    def add(self, response: dict[str, Any], messages: Messages) -> None:
        size = len(json.dumps(response)) + len(json.dumps(messages))
        self._kept[response["id"]] = _Stored(response, messages, size)
        self._bytes += size
        while self._bytes > STORED_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].size

    def find(self, identity: str) -> _Stored | None:
        return self._kept.get(identity)

    def remove(self, identity: str) -> bool:
        removed = self._kept.pop(identity, None)
        self._bytes -= removed.size if removed else 0
        return removed is not None


class _Reply:
    """A chat's answer as a response with items, and its events in OpenAI's order."""

    def __init__(
        self, body: ResponsesRequest, name: str, answer: ChatAnswer, messages: Messages, store: _Store
    ) -> None:
        self._body, self._answer, self._messages, self._store = body, answer, messages, store
        self.add = answer.add
        self._items = Items()
        self._events = 0
        warnings = body.warnings() + answer.warnings
        self._head: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(24)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": name,
            "instructions": body.instructions,
            "previous_response_id": body.previous_response_id,
            "store": body.store,
            "metadata": body.metadata,
            "max_output_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_logprobs": body.top_logprobs,
            "text": {"format": body.text.format.model_dump(by_alias=True, exclude_none=True)},
            "tools": [tool.model_dump() for tool in body.tools],
            "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            "parallel_tool_calls": body.parallel_tool_calls,
            "truncation": "disabled",
            "background": False,
            **({"x_mobilemoe": {"warnings": warnings}} if warnings else {}),
        }

    def whole(self) -> dict[str, Any]:
        choice = self._answer.whole()["choices"][0]
        message = choice["message"]
        calls = [call | {"index": index} for index, call in enumerate(message.get("tool_calls") or ())]
        delta = {"content": message["content"], "tool_calls": calls}
        for _ in self._items.take(delta, choice["logprobs"], choice["finish_reason"]):
            pass
        return self._ended()

    def opening(self) -> Iterator[str]:
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, {"response": self._response("in_progress")})

    def events(self, step: Step) -> Iterator[str]:
        chunk = self._answer.event(step)
        if chunk is not None:
            choice = chunk["choices"][0]
            for name, fields in self._items.take(choice["delta"], choice["logprobs"], choice["finish_reason"]):
                yield self._event(name, fields)

    def closing(self) -> Iterator[str]:
        response = self._ended()
        yield self._event(f"response.{response['status']}", {"response": response})

    def failure(self, fault: ApiError) -> Iterator[str]:
        error = {"code": "server_error", "message": fault.detail}
        yield self._event("response.failed", {"response": self._response("failed", error=error)})

    def _ended(self) -> dict[str, Any]:
        response = self._response(self._items.status)
        if self._body.store:
            self._store.add(response, self._body.extended(self._messages, self._items.done))
        return response

    def _response(self, status: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
        used = self._answer.usage() if status in ("completed", "incomplete") else None
        return {
            **self._head,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [*self._items.done],
            "usage": used
            and {
                "input_tokens": used["prompt_tokens"],
                "input_tokens_details": {**used["prompt_tokens_details"], "cache_write_tokens": 0},
                "output_tokens": used["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used["total_tokens"],
            },
        }

    def _event(self, name: str, fields: Event) -> str:
        number, self._events = self._events, self._events + 1
        return written({"type": name, "sequence_number": number, **fields}, name)


def add_responses(app: FastAPI, desk: Desk) -> None:
    store = _Store()

    def stored(identity: str) -> _Stored:
        found = store.find(identity)
        if found is None:
            raise ApiError(404, f"there is no response {identity!r} here, or no longer", code="response_not_found")
        return found

    def conversation(body: ResponsesRequest) -> Messages:
        """That of the request and of the response that it goes on from."""
        if body.previous_response_id is None:
            return body.messages([])
        found = store.find(body.previous_response_id)
        if found is None:
            raise ApiError(
                400,
                f"previous_response_id: there is no response {body.previous_response_id!r} here, or no longer",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return body.messages(found.messages)

    @app.post("/v1/responses")
    async def create(body: ResponsesRequest, request: Request) -> Response:
        body.warnings()  # what is not offered is refused before anything is computed
        messages = conversation(body)
        order, answer = await desk.chat(body.chat(messages))
        reply = _Reply(body, desk.name, answer, messages, store)
        return Events(order, reply) if body.stream else await whole(request, order, reply)

    @app.post("/v1/responses/input_tokens")
    async def count(body: ResponsesRequest) -> dict[str, Any]:
        body.warnings()
        return {"object": "response.input_tokens", "input_tokens": await desk.count(body.chat(conversation(body)))}

    @app.get("/v1/responses/{identity}")
    async def retrieve(identity: str) -> dict[str, Any]:
        return stored(identity).response

    @app.delete("/v1/responses/{identity}")
    async def delete(identity: str) -> dict[str, Any]:
        stored(identity)
        store.remove(identity)
        return {"id": identity, "object": "response", "deleted": True}
