"""The routes. What they compute is asked of the scheduler; whoever asked and goes away takes the request along."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from mobilemoe.errors import MobileMoEError
from mobilemoe.ids import check_ids
from mobilemoe.load import Model
from mobilemoe.serve.answers import Answer, ChatAnswer, CompletionAnswer
from mobilemoe.serve.errors import ApiError, add_handlers, as_api_error, error_object
from mobilemoe.serve.guard import Guard
from mobilemoe.serve.scheduler import Scheduler, Step, Text, Ticket
from mobilemoe.serve.wire import (
    MAX_TEXTS,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

_CLIENT_GONE = 499  # as nginx logs it; nobody reads the response


class _Order:
    """A request in the queue, seen from the event loop: its steps in order, until every text has ended."""

    def __init__(self, scheduler: Scheduler, texts: Sequence[Text]) -> None:
        self._scheduler, self._left = scheduler, len(texts)
        self._arrived: asyncio.Queue[Step | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._ticket = Ticket(texts, self._deliver)
        scheduler.submit(self._ticket)

    def _deliver(self, arrived: Step | Exception) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waits
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, arrived)

    async def steps(self) -> AsyncIterator[Step]:
        while self._left:
            arrived = await self._arrived.get()
            if isinstance(arrived, Exception):
                raise arrived
            self._left -= arrived.finished is not None
            yield arrived

    def cancel(self) -> None:
        self._scheduler.cancel(self._ticket)


class _Events(StreamingResponse):
    """A stream of server-sent events; a client that goes away cancels the order."""

    def __init__(self, order: _Order, answer: Answer, with_usage: bool) -> None:
        super().__init__(_events(order, answer, with_usage), media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-store"
        self._order = order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._order.cancel()


async def _events(order: _Order, answer: Answer, with_usage: bool) -> AsyncIterator[str]:
    usage = {"usage": None} if with_usage else {}  # as OpenAI: null in every event but the last
    try:
        for event in answer.opening():
            yield _event(event | usage)
        async for step in order.steps():
            answer.add(step)
            if (shown := answer.event(step)) is not None:
                yield _event(shown | usage)
        if with_usage:
            yield _event(answer.usage_event())
        yield "data: [DONE]\n\n"
    except Exception as fault:
        yield _event(error_object(as_api_error(fault)))


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, allow_nan=False)}\n\n"


async def _whole(request: Request, order: _Order, answer: Answer) -> Response:
    """The answer once it is complete, unless its client goes away before."""

    async def collect() -> None:
        async for step in order.steps():
            answer.add(step)

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    collecting, gone = asyncio.ensure_future(collect()), asyncio.ensure_future(until_gone())
    try:
        await asyncio.wait({collecting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=_CLIENT_GONE)
        collecting.result()
        return JSONResponse(answer.whole())
    finally:
        order.cancel()
        collecting.cancel()
        gone.cancel()


def create_app(scheduler: Scheduler, name: str, *, api_key: str | None, local_only: bool) -> FastAPI:
    """The server's routes for the model that `scheduler` runs, which clients call `name`; see `Guard` for the rest."""
    app = FastAPI(title="mobilemoe", docs_url=None, redoc_url=None)  # the pages would load scripts from elsewhere
    app.add_middleware(Guard, api_key=api_key, local_only=local_only)
    add_handlers(app)
    started = int(time.time())

    def loaded(wanted: str | None) -> Model:
        model = scheduler.model
        if wanted not in (None, name):
            raise ApiError(
                404, f"there is no model {wanted!r} here, only {name!r}", param="model", code="model_not_found"
            )
        return model

    async def write(
        request: Request,
        body: ChatRequest | CompletionRequest,
        model: Model,
        prompts: Sequence[list[int]],
        kind: type[Answer],
    ) -> Response:
        logprobs, warnings = body.wanted_logprobs(), body.warnings()
        if len(prompts) * body.n > MAX_TEXTS:
            raise ApiError(400, f"n for each prompt makes more than {MAX_TEXTS} texts", param="n")
        texts: list[Text] = []
        try:
            for ids in prompts:
                most = model.fitting(ids, body.most_tokens(model.config.max_position_embeddings))
                for number in range(body.n):
                    sampling = body.sampling(number)
                    sampling.check_for(model.config.vocab_size, logprobs)
                    texts.append(Text(len(texts), ids, model.writer(most, body.stop), most, sampling, logprobs))
        except MobileMoEError as fault:
            raise as_api_error(fault, type(body).model_fields) from None
        answer = kind(
            name,
            model.tokenizer,
            count=len(texts),
            prompt_tokens=sum(map(len, prompts)),
            with_logprobs=logprobs is not None,
            stop_ids=model.stop_ids,
            warnings=warnings,
        )
        order = _Order(scheduler, texts)
        if body.stream:
            return _Events(order, answer, body.stream_options is not None and body.stream_options.include_usage)
        return await _whole(request, order, answer)

    @app.get("/health")
    def health() -> JSONResponse:
        running, waiting = scheduler.counts
        status = 200 if scheduler.state == "ready" else 503
        return JSONResponse({"status": scheduler.state, "running": running, "waiting": waiting}, status)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [_described(name, started)]}

    @app.get("/v1/models/{wanted:path}")
    def one_model(wanted: str) -> dict[str, Any]:
        loaded(wanted)
        return _described(name, started)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        model = loaded(body.model)
        scheduler.check_open()
        ids = await asyncio.to_thread(_chat_ids, model, body.messages)
        return await write(request, body, model, [ids], ChatAnswer)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        model = loaded(body.model)
        scheduler.check_open()
        prompts = await asyncio.to_thread(
            lambda: [model.encode(each) if isinstance(each, str) else each for each in body.prompts()]
        )
        return await write(request, body, model, prompts, CompletionAnswer)

    @app.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        model = loaded(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either a prompt or messages")
        if body.messages is not None:
            ids = _chat_ids(model, body.messages)
        else:
            with_begin = body.add_special_tokens and model.tokenizer.bos_id is not None
            ids = model.tokenizer.encode(body.prompt or "", bos=with_begin)
        return {"tokens": ids, "count": len(ids), "max_model_len": model.config.max_position_embeddings}

    @app.post("/detokenize")
    def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        model = loaded(body.model)
        if body.tokens:
            check_ids(body.tokens, model.config.vocab_size, len(body.tokens))
        return {"prompt": model.tokenizer.decode(body.tokens, skip_special=False)}

    return app


def _chat_ids(model: Model, messages: Sequence[ChatMessage]) -> list[int]:
    return model.encode(messages=[message.plain() for message in messages])


def _described(name: str, started: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": started, "owned_by": "mobilemoe"}
