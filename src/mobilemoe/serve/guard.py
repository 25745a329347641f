"""What stands before every route: the key, the names of hosts, and the size and type of a request."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mobilemoe.serve.errors import ApiError, error_response, later
from mobilemoe.serve.page import PATHS

MAX_BODY_BYTES = 4 * 2**20
MAX_HELD_BYTES = 32 * 2**20  # of the bodies of all requests in progress
MAX_VALUES = 2**18  # in the JSON of a body: numbers, texts, lists and objects
MAX_HEADERS = 100
# No page of another origin may read an answer, whatever its type is taken for.
_SAFE_HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}


class Guard:
    """Lets requests pass that have the key, if there is one; `/health` and the page's own files need none.

    `local_only`: where there is no key, only requests to a loopback name pass. Otherwise a web page could reach the
    server through a name of its own that it lets point to this machine. Without a key no page of another origin may
    ask either: its browser would send what it asks, and only keep the answer from it.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, local_only: bool) -> None:
        self._app, self._local_only = app, local_only
        self._key = None if api_key is None else api_key.encode()
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, send = Headers(scope=scope), _with_safe_headers(send)
        try:
            if scope["path"] != "/health":
                self._check_sender(headers, is_page=scope["path"] in PATHS)
            _check_form(headers)
        except ApiError as fault:
            await error_response(fault)(scope, receive, send)
            return
        body = bytearray()
        try:
            async for part in _parts(receive):
                if len(body) + len(part) > MAX_BODY_BYTES:
                    raise _too_large()
                if self._held_bytes + len(part) > MAX_HELD_BYTES:
                    raise later(429, "the server holds too many large requests now", "too_many_bytes", 1)
                self._held_bytes += len(part)
                body += part
            _check_values(body)
            await self._app(scope, _replayed(bytes(body), receive), send)
        except ClientDisconnect:
            pass  # nobody reads an answer
        except ApiError as fault:
            await error_response(fault)(scope, receive, send)
        finally:
            self._held_bytes -= len(body)

    def _check_sender(self, headers: Headers, *, is_page: bool) -> None:
        if self._key is not None:
            if is_page:  # the same for everybody: it asks for the key before it asks for data
                return
            if not hmac.compare_digest(_given_key(headers).encode("latin-1"), self._key):
                raise ApiError(
                    401,
                    "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            return
        host = headers.get("host", "")
        if self._local_only and not is_loopback(_host_name(host)):
            raise ApiError(403, "this server answers to the name localhost and to loopback addresses only")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise ApiError(403, "a web page of another origin asks, and there is no key that would let it")


def _given_key(headers: Headers) -> str:
    """As OpenAI's clients send it, or Anthropic's."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach `host`, an address or a name."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(header: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _check_form(headers: Headers) -> None:
    """A page of another origin may send text and forms unasked, but JSON only with leave, which none gets here."""
    if len(headers) > MAX_HEADERS:
        raise ApiError(431, f"there are more than {MAX_HEADERS} headers")
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise _too_large()
    if length.strip("0") == "" and "transfer-encoding" not in headers:
        return
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not taken here", code="unsupported_media_type")
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise ApiError(415, "a body has to be JSON, with Content-Type: application/json", code="unsupported_media_type")


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` for an application that is to find the whole `body` there."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def _check_values(body: bytearray) -> None:
    """Bounds what parsing and checking cost: a value of two bytes takes a hundred times as much memory."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ApiError(413, f"the body holds more than {MAX_VALUES:,} values")


def _too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {MAX_BODY_BYTES:,} bytes")


def _with_safe_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_SAFE_HEADERS)
        await send(message)

    return sending
