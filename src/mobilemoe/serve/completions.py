"""OpenAI's chat completions and completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request, Response

from mobilemoe.serve.answers import Answer
from mobilemoe.serve.desk import Desk
from mobilemoe.serve.errors import ApiError, error_object
from mobilemoe.serve.order import Events, EventTemplate, Order, whole, written
from mobilemoe.serve.scheduler import Step
from mobilemoe.serve.wire import ChatRequest, CompletionRequest


class _Reply:
    """An answer as it is. `with_usage`: the stream ends with the usage, which is null in the events before."""

    def __init__(self, answer: Answer, with_usage: bool) -> None:
        self._answer, self._with_usage = answer, with_usage
        self._usage: dict[str, Any] = {"usage": None} if with_usage else {}
        self.add, self.whole = answer.add, answer.whole
        self._templates: dict[int, EventTemplate] = {}  # of the events that add text, by answer

    def opening(self) -> Iterator[str]:
        for event in self._answer.opening():
            yield written(event | self._usage)

    def events(self, step: Step) -> Iterator[str]:
        text = self._answer.added_text(step)
        if text is not None:
            if step.index not in self._templates:
                self._templates[step.index] = EventTemplate(
                    lambda text: written(self._answer.text_event(step.index, text) | self._usage)
                )
            yield self._templates[step.index].filled(text)
        elif (event := self._answer.event(step)) is not None:
            yield written(event | self._usage)

    def closing(self) -> Iterator[str]:
        if self._with_usage:
            yield written(self._answer.usage_event())
        yield "data: [DONE]\n\n"

    def failure(self, fault: ApiError) -> Iterator[str]:
        yield written(error_object(fault))


async def _respond(request: Request, body: ChatRequest | CompletionRequest, order: Order, answer: Answer) -> Response:
    reply = _Reply(answer, body.stream_options is not None and body.stream_options.include_usage)
    return Events(order, reply) if body.stream else await whole(request, order, reply)


def add_completions(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await _respond(request, body, *await desk.chat(body))

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _respond(request, body, *await desk.complete(body))
