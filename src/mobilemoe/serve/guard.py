"""What stands before every route: the key, the name of the host, and the size of a request."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mobilemoe.serve.errors import ApiError, error_response
from mobilemoe.serve.page import PATHS

MAX_BODY_BYTES = 4 * 2**20


class Guard:
    """Lets requests pass that have the key, if there is one; `/health` and the page's own files need none.

    `local_only`: where there is no key, only requests to a loopback name pass. Otherwise a web page could reach the
    server through a name of its own that it lets point to this machine.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, local_only: bool) -> None:
        self._app, self._local_only = app, local_only
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if scope["path"] != "/health":
                self._check(headers, is_page=scope["path"] in PATHS)
            _check_length(headers)
        except ApiError as fault:
            await error_response(fault)(scope, receive, send)
            return
        await self._app(scope, _limited(receive), send)

    def _check(self, headers: Headers, *, is_page: bool) -> None:
        if self._key is not None:
            if is_page:  # the same for everybody: it asks for the key before it asks for data
                return
            scheme, _, given = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("latin-1"), self._key)
            if not (same and scheme.lower() == "bearer"):
                raise ApiError(
                    401,
                    "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        elif self._local_only and not is_loopback(_host_name(headers.get("host", ""))):
            raise ApiError(403, "this server answers to the name localhost and to loopback addresses only")


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


def _check_length(headers: Headers) -> None:
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise _too_large()


def _limited(receive: Receive) -> Receive:
    """Counts the bytes of a body whose length was not said before."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY_BYTES:
            raise _too_large()
        return message

    return limited


def _too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {MAX_BODY_BYTES:,} bytes")
