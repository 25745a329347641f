"""Errors of the server, and all others, in the shape that OpenAI's clients read."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from mobilemoe.errors import MobileMoEError, TokenizerError, UsageError

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
        return ApiError(fault.status_code, str(fault.detail), headers=fault.headers)
    if isinstance(fault, RequestValidationError | ValidationError):
        first = fault.errors()[0]
        place = [str(part) for part in first["loc"] if part != "body"]
        where = ".".join(place) or "the body"
        return ApiError(400, f"{where}: {first['msg']}", param=place[0] if place else None)
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


def error_object(error: ApiError) -> dict[str, Any]:
    """The body of a response, or of the last event of a stream."""
    if error.status_code == 401:
        kind = "authentication_error"
    elif error.status_code == 429:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    return {"error": {"message": error.detail, "type": kind, "param": error.param, "code": error.code}}


def error_response(fault: Exception) -> JSONResponse:
    error = as_api_error(fault)
    return JSONResponse(error_object(error), error.status_code, headers=error.headers)


def add_handlers(app: FastAPI) -> None:
    """Gives every error of `app` this shape, also those of routes that do not exist."""

    async def handle(request: Request, fault: Exception) -> JSONResponse:
        return error_response(fault)

    for kind in (HTTPException, RequestValidationError, ValidationError, MobileMoEError, Exception):
        app.add_exception_handler(kind, handle)
