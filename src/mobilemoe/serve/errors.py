"""Errors of the server, and all others, in the shape that OpenAI's clients read."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from mobilemoe.errors import MobileMoEError, TokenizerError, UsageError

_FORM = re.compile(r"^(str|int)$|[\[(]|^_")  # the name of one of several forms, in the place of a fault
_MESSAGES = "/v1/messages"  # Anthropic's API
_MESSAGE_ERRORS = {  # the names of its errors, by status
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_LONGEST = 500  # characters of a message


def readable(text: str) -> str:
    """One line of printable characters that UTF-8 can hold, not too long: clients' own words may stand in `text`."""
    kept = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in kept)


class ApiError(HTTPException):
    """A request that fails: its status, one sentence, and the field of the body that is at fault, if one is."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, readable(message), headers=headers)
        self.param, self.code = None if param is None else readable(param), code


def later(status: int, message: str, code: str, seconds: float) -> ApiError:
    """A request that may succeed when it is sent again in so many seconds."""
    return ApiError(status, message, code=code, headers={"Retry-After": str(max(1, math.ceil(seconds)))})


def failed(fault: Exception) -> ApiError:
    """A fault that is not of the request: it is printed, and the client learns of no file or folder."""
    print(f"mobilemoe: {readable(str(fault)) or type(fault).__name__}", file=sys.stderr)
    headers = {"Connection": "close"}  # as uvicorn does after a fault: the client should know
    return ApiError(500, "the server failed: its own log says why", code="internal_error", headers=headers)


def as_api_error(fault: Exception, fields: Mapping[str, Any] | None = None) -> ApiError:
    """What a client may know of `fault`; our own errors that begin with the name of one of `fields` are about it."""
    if isinstance(fault, ApiError):
        return fault
    if isinstance(fault, HTTPException):
        if fault.status_code == 404:
            return ApiError(404, "this server has no such route: docs/serving.md lists those that it has")
        return ApiError(fault.status_code, str(fault.detail), headers=fault.headers)
    if isinstance(fault, RequestValidationError | ValidationError):
        # Where a field has several forms, each has its faults. That of the form that was meant is of another kind than
        # "this is no text", such as a list that is too long, or else it is the deepest.
        first = max(fault.errors(), key=lambda each: (not each["type"].endswith("_type"), len(each["loc"])))
        if isinstance(fault, RequestValidationError):  # which says first whether the body is at fault
            place = _place(first["loc"][1:], fault.body)
        else:
            place = _place(first["loc"], None)
        said = first["msg"].removeprefix("Value error, ")
        return ApiError(400, f"{'.'.join(place) or 'the body'}: {said}", param=place[0] if place else None)
    if isinstance(fault, UsageError | TokenizerError):
        name = str(fault).split(" ", 1)[0]
        too_long = "more than the context" in str(fault)
        return ApiError(
            400,
            str(fault),
            param=name if name in (fields or {}) else None,
            code="context_length_exceeded" if too_long else None,
        )
    return failed(fault)


def _place(location: Sequence[int | str], body: Any) -> list[str]:
    """The names and numbers that lead to a fault in `body`, without those of the forms that a value may have."""
    place, value = [], body
    for left, part in zip(range(len(location) - 1, -1, -1), location, strict=True):
        if isinstance(part, int):
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif isinstance(value, dict) and part in value:
            value = value[part]
        elif _FORM.search(part) or (left and value is not None):
            continue  # a form; the last name is of a field that is missing
        place.append(str(part))
    return place


def error_object(error: ApiError) -> dict[str, Any]:
    """The body of a response, or of the last event of a stream."""
    if error.status_code == 401:
        kind = "authentication_error"
    elif error.status_code == 429:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    return {"error": {"message": error.detail, "type": kind, "param": error.param, "code": error.code}}


def message_error(error: ApiError) -> dict[str, Any]:
    """The same for a client of Anthropic's API."""
    status = error.status_code
    kind = _MESSAGE_ERRORS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.detail}}


class _ErrorResponse(Response):
    """Has the shape of the protocol whose path was asked."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(status_code=error.status_code)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shape = message_error if scope["path"].startswith(_MESSAGES) else error_object
        response = JSONResponse(shape(self._error), self.status_code, headers=self._error.headers)
        await response(scope, receive, send)


def error_response(fault: Exception) -> Response:
    return _ErrorResponse(as_api_error(fault))


def add_handlers(app: FastAPI) -> None:
    """Gives every error of `app` this shape, also those of routes that do not exist."""

    async def handle(request: Request, fault: Exception) -> Response:
        return error_response(fault)

    for kind in (HTTPException, RequestValidationError, ValidationError, MobileMoEError, Exception):
        app.add_exception_handler(kind, handle)
