"""Anthropic's Messages API, on top of the answers of chats."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response

from mobilemoe.serve.answers import ChatAnswer
from mobilemoe.serve.desk import Desk
from mobilemoe.serve.errors import ApiError, message_error
from mobilemoe.serve.messages_wire import CountRequest, MessagesRequest
from mobilemoe.serve.order import Events, EventTemplate, whole, written
from mobilemoe.serve.scheduler import Step


class _Reply:
    """A chat's answer as a message of content blocks, and its events in Anthropic's order."""

    def __init__(self, body: MessagesRequest, name: str, answer: ChatAnswer) -> None:
        self._answer, self._most_tokens = answer, body.max_tokens
        self._blocks = 0  # begun
        self._open: str | None = None  # the type of the block that is open
        self._more_text: EventTemplate | None = None  # of the block that is open, if that is one of text
        self._call = -1  # the index of the call that is open
        self._finish: str | None = None
        self._stop_text: str | None = None
        warnings = body.warnings() + answer.warnings
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": name,
            **({"x_mobilemoe": {"warnings": warnings}} if warnings else {}),
        }

    def add(self, step: Step) -> None:
        self._answer.add(step)
        self._stop_text = step.stop_text

    def whole(self) -> dict[str, Any]:
        choice = self._answer.whole()["choices"][0]
        self._finish = choice["finish_reason"]
        text = choice["message"]["content"]
        content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        content += [
            {"type": "tool_use", "id": call["id"], **_called(call["function"])}
            for call in choice["message"].get("tool_calls") or ()
        ]
        return self._head | {"content": content, **self._end(), "usage": self._usage()}

    def opening(self) -> Iterator[str]:
        message: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": self._usage()}
        yield _event("message_start", message=self._head | message)

    def events(self, step: Step) -> Iterator[str]:
        text = self._answer.added_text(step)
        if text is not None and self._more_text is not None:
            yield self._more_text.filled(text)
            return
        chunk = self._answer.event(step)
        if chunk is None:
            return
        choice = chunk["choices"][0]
        self._finish = choice["finish_reason"]
        if text := choice["delta"].get("content"):
            if self._open != "text":
                yield from self._begin({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": text})
        for call in choice["delta"].get("tool_calls") or ():
            if call["index"] != self._call:
                self._call = call["index"]
                yield from self._begin(
                    {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": {}}
                )
            if piece := call["function"].get("arguments"):
                yield self._delta({"type": "input_json_delta", "partial_json": piece})

    def closing(self) -> Iterator[str]:
        yield from self._close()
        yield _event("message_delta", delta=self._end(), usage=self._usage())
        yield _event("message_stop")

    def failure(self, fault: ApiError) -> Iterator[str]:
        yield written(message_error(fault), "error")

    def _begin(self, block: dict[str, Any]) -> Iterator[str]:
        yield from self._close()
        yield _event("content_block_start", index=self._blocks, content_block=block)
        self._blocks, self._open = self._blocks + 1, block["type"]
        if self._open == "text":
            self._more_text = EventTemplate(lambda text: self._delta({"type": "text_delta", "text": text}))

    def _delta(self, delta: dict[str, Any]) -> str:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _close(self) -> Iterator[str]:
        if self._open is not None:
            yield _event("content_block_stop", index=self._blocks - 1)
        self._open = self._more_text = None

    def _end(self) -> dict[str, Any]:
        """Why the message ended. A text that was cut off before its limit has filled the context."""
        if self._finish == "tool_calls":
            reason = "tool_use"
        elif self._finish == "length":
            full = self._answer.usage()["completion_tokens"] < self._most_tokens
            reason = "model_context_window_exceeded" if full else "max_tokens"
        else:
            reason = "end_turn" if self._stop_text is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": self._stop_text}

    def _usage(self) -> dict[str, int]:
        """Anthropic counts what was cached beside the input."""
        used = self._answer.usage()
        cached = used["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": used["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": used["completion_tokens"],
        }


def _called(function: Mapping[str, str]) -> dict[str, Any]:
    """A call whose arguments were cut off has none."""
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        arguments = {}
    return {"name": function["name"], "input": arguments}


def _event(name: str, **fields: Any) -> str:
    return written({"type": name, **fields}, name)


def add_messages(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/messages")
    async def create(body: MessagesRequest, request: Request) -> Response:
        body.warnings()  # what is not offered is refused before anything is computed
        order, answer = await desk.chat(body.chat())
        reply = _Reply(body, desk.name, answer)
        return Events(order, reply) if body.stream else await whole(request, order, reply)

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountRequest) -> dict[str, int]:
        body.warnings()
        return {"input_tokens": await desk.count(body.chat())}
