"""One connection, with what uvicorn leaves out: no client keeps it by being slow, and none keeps others out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mobilemoe.serve.errors import ApiError, error_object

MAX_CONNECTIONS = 512
MAX_HEAD_BYTES = 16 * 2**10  # the line of a request and its headers
HEAD_SECONDS = 10  # from the opening of the connection, or the first byte of a later request, to the end of the head
BODY_SECONDS = 60  # from there to the end of the body
STALL_SECONDS = 30  # in which a client takes none of what is there for it
IDLE_SECONDS = 75  # between two requests; clients close earlier, so none sends one to a connection just closed


class Connection(H11Protocol):
    """An HTTP/1.1 connection that ends where its client is too slow to send a request, or to take an answer.

    Beyond `MAX_CONNECTIONS` a new one takes the place of the one that has waited longest for a whole request; where
    all are being answered the new one is closed.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._sending: asyncio.TimerHandle | None = None  # the client, a request
        self._taking: asyncio.TimerHandle | None = None  # the client, an answer
        self._awaited: tuple[object, object] | None = None  # the part of which request `_sending` is about
        self._waits_since = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_request(has_begun=True)
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [each for each in self.connections if isinstance(each, Connection) and not each._is_answered]
            longest = min(waiting, key=lambda each: each._waits_since)
            longest.transport.abort()
            self.connections.discard(longest)  # so that it is not chosen again before it has ended

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._sending, self._taking):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_request(has_begun=True)

    def on_response_complete(self) -> None:
        self._waits_since = self.loop.time()
        super().on_response_complete()
        self._watch_request(has_begun=bool(self.conn.trailing_data[0]))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taking is not None:
            self._taking.cancel()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "this is not an HTTP request that the server understands"))

    @property
    def _is_answered(self) -> bool:
        """Whether a whole request is there, and its answer is not complete."""
        return self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete)

    def _watch_request(self, has_begun: bool) -> None:
        """Sets the time for the part of a request that comes next, once; `has_begun`: whether a head is due."""
        part = self.conn.their_state
        seconds = {h11.IDLE: HEAD_SECONDS if has_begun else None, h11.SEND_BODY: BODY_SECONDS}.get(part)
        awaited = None if seconds is None else (part, self.cycle)
        if awaited == self._awaited:
            return
        self._awaited = awaited
        if self._sending is not None:
            self._sending.cancel()
        self._sending = None if seconds is None else self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self.transport.close()  # nothing was asked
        else:
            self._refuse(ApiError(408, "the request did not arrive in time"))

    def _refuse(self, error: ApiError) -> None:
        """Answers what is no request, or not yet; where an answer has begun the connection just ends."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = json.dumps(error_object(error)).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        for event in (h11.Response(status_code=error.status_code, headers=headers), h11.Data(data=body)):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
