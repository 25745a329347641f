"""Reads a request strictly: its body as JSON in UTF-8, and as nothing else, and no parameter that nobody knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from mobilemoe.serve.errors import ApiError

_PROBED = ("/health", "/metrics")  # whoever asks for these may add what it likes
_HARMLESS = {"beta"}  # of Anthropic's client: the same routes, with fields that have a check of their own


class StrictRoute(APIRoute):
    """A route whose bodies have no NaN, no infinity and no half of a surrogate pair, which Python's reader lets pass.

    Such values would fail where an answer repeats them. Of a name that is given twice the last value counts. Parameters
    behind the path that the route does not name are refused: `?stream=true` would change nothing.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known = {field.alias for field in self.dependant.query_params} | _HARMLESS

        async def strict(request: Request) -> Response:
            unknown = sorted(request.query_params.keys() - known)
            if unknown and self.path not in _PROBED:
                raise ApiError(
                    400, f"there is no query parameter named {unknown[0]!r}", param=unknown[0], code="unknown_parameter"
                )
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        try:
            text = (await self.body()).decode()
            value = json.loads(text, parse_constant=_refuse)
            if "\\u" in text:  # only an escape can hold half of a pair
                json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as fault:
            raise ApiError(400, f"the body is not JSON in UTF-8: {_reason(fault)}") from None
        return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _reason(fault: Exception) -> str:
    if isinstance(fault, RecursionError):
        return "it is nested too deeply"
    if isinstance(fault, UnicodeEncodeError):
        return "a text has half of a surrogate pair"
    return str(fault)
