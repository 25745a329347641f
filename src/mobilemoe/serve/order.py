"""A request on its way: into the scheduler's queue, and its answer out, whole or as a stream of events.

Whoever asked and goes away takes the request along.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from mobilemoe.serve.errors import ApiError, as_api_error
from mobilemoe.serve.mailbox import mailbox
from mobilemoe.serve.scheduler import Scheduler, Step, Text, Ticket, too_late

MOST_BEHIND = 10_000  # tokens that wait for a client to take them
_CLIENT_GONE = 499  # as nginx logs it; nobody reads the response


class Reply(Protocol):
    """An answer in the words of one protocol: `whole` once every step was added, or `opening`, the `events` of each
    step and `closing`, or `failure` in place of what is missing."""

    def add(self, step: Step) -> None: ...

    def whole(self) -> dict[str, Any]: ...

    def opening(self) -> Iterable[str]: ...

    def events(self, step: Step) -> Iterable[str]: ...

    def closing(self) -> Iterable[str]: ...

    def failure(self, fault: ApiError) -> Iterable[str]: ...


class Order:
    """A request in the queue, seen from the event loop: its steps in order, until every text has ended.

    `prepare` is awaited before the first of them, while the texts are computed already.
    """

    prepare: Callable[[], Awaitable[None]] | None = None

    def __init__(self, scheduler: Scheduler, texts: Sequence[Text]) -> None:
        self._scheduler, self._left = scheduler, len(texts)
        self._arrived: deque[Step | Exception] = deque()
        self._some = asyncio.Event()
        self._mailbox = mailbox()
        self._ticket = Ticket(texts, self._deliver)
        if texts:
            scheduler.submit(self._ticket)

    def _deliver(self, arrived: Step | Exception) -> None:
        """Called from the scheduler's thread. The first token and the last do not wait for others."""
        if len(self._arrived) >= MOST_BEHIND:
            self.cancel()
            arrived = ApiError(408, f"{MOST_BEHIND:,} tokens wait, which the client is too slow to take")
        self._arrived.append(arrived)
        urgent = isinstance(arrived, Exception) or arrived.tokens == 1 or arrived.finished is not None
        self._mailbox.post(self._some.set, urgent=urgent)

    async def steps(self) -> AsyncIterator[list[Step]]:
        """All that have come, each time that some have. Raises what ended the request, if something did."""
        while self._left:
            await self._some.wait()
            self._some.clear()
            arrived = [self._arrived.popleft() for _ in range(len(self._arrived))]
            steps = [each for each in arrived if isinstance(each, Step)]
            self._left -= sum(step.finished is not None for step in steps)
            if steps:
                yield steps
            for each in arrived:
                if isinstance(each, Exception):
                    raise each

    async def prepared(self) -> None:
        """ApiError if it takes more than the time that a request has."""
        if self.prepare is not None:
            try:
                async with asyncio.timeout(self._scheduler.request_seconds):
                    await self.prepare()
            except TimeoutError:
                raise too_late(self._scheduler.request_seconds) from None

    def cancel(self) -> None:
        self._scheduler.cancel(self._ticket)


class Events(StreamingResponse):
    """A stream of server-sent events; a client that goes away cancels the order."""

    def __init__(self, order: Order, reply: Reply) -> None:
        super().__init__(_events(order, reply), media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-store"
        self._order = order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._order.cancel()


async def _events(order: Order, reply: Reply) -> AsyncIterator[str]:
    try:
        await order.prepared()
        for event in reply.opening():
            yield event
        async for steps in order.steps():
            shown = ""
            for step in steps:
                reply.add(step)
                shown += "".join(reply.events(step))
            if shown:
                yield shown
        for event in reply.closing():
            yield event
    except Exception as fault:
        for event in reply.failure(as_api_error(fault)):
            yield event


def written(value: dict[str, Any], name: str | None = None) -> str:
    """A server-sent event; in some protocols it has a `name`."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(value, allow_nan=False)}\n\n"


class EventTemplate:
    """An event of which one text changes from time to time: all the rest is written once, by `write`."""

    def __init__(self, write: Callable[[str], str]) -> None:
        mark = secrets.token_hex(16)
        self._before, self._after = write(mark).split(f'"{mark}"')

    def filled(self, text: str) -> str:
        return f"{self._before}{json.dumps(text)}{self._after}"


async def whole(request: Request, order: Order, reply: Reply) -> Response:
    """The answer once it is complete, unless its client goes away before."""

    async def collect() -> None:
        await order.prepared()
        async for steps in order.steps():
            for step in steps:
                reply.add(step)

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    collecting, gone = asyncio.ensure_future(collect()), asyncio.ensure_future(until_gone())
    try:
        await asyncio.wait({collecting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=_CLIENT_GONE)
        collecting.result()
        return JSONResponse(reply.whole())
    finally:
        order.cancel()
        collecting.cancel()
        gone.cancel()
