"""The items of a response, made from the pieces of a chat's answer, with the events that tell of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Event: TypeAlias = Mapping[str, Any]  # its fields, without type and number


class Items:
    """`take` each piece of the answer; then `done` are its items: messages, and calls of functions.

    `status` is "incomplete" where the answer was cut off.
    """

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self.status = "in_progress"
        self._open: dict[str, Any] | None = None
        self._call = -1  # the index of the call that is open

    def take(
        self, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None, finished: str | None
    ) -> Iterator[tuple[str, Event]]:
        """Yields the name and the fields of each event that a piece of the answer brings."""
        if delta.get("content") or logprobs:
            yield from self._text(delta.get("content") or "", [*(logprobs or {}).get("content", ())])
        for call in delta.get("tool_calls") or ():
            yield from self._arguments(call)
        if finished:
            if self._open is None and not self.done:  # an answer of no characters is an answer too
                yield from self._text("", [])
            self.status = "incomplete" if finished == "length" else "completed"
            yield from self._close(self.status)

    @property
    def _place(self) -> dict[str, Any]:
        """Where the open item stands."""
        return {"item_id": self._open["id"] if self._open else None, "output_index": len(self.done)}

    def _text(self, piece: str, logprobs: list[dict[str, Any]]) -> Iterator[tuple[str, Event]]:
        if self._open is None or self._open["type"] != "message":
            yield from self._close("completed")
            yield self._begin({"type": "message", "role": "assistant", "content": []}, "msg")
            yield "response.content_part.added", {**self._place, "content_index": 0, "part": _part("", [])}
            assert self._open is not None
            self._open["content"] = [_part("", [])]
        part = self._open["content"][0]
        part["text"] += piece
        part["logprobs"] += logprobs
        if piece or logprobs:
            fields = {**self._place, "content_index": 0, "delta": piece, "logprobs": logprobs}
            yield "response.output_text.delta", fields

    def _arguments(self, call: Mapping[str, Any]) -> Iterator[tuple[str, Event]]:
        function = call.get("function") or {}
        if call["index"] != self._call:
            yield from self._close("completed")
            self._call = call["index"]
            item = {"type": "function_call", "call_id": call["id"], "name": function["name"], "arguments": ""}
            yield self._begin(item, "fc")
        if piece := function.get("arguments"):
            assert self._open is not None
            self._open["arguments"] += piece
            yield "response.function_call_arguments.delta", {**self._place, "delta": piece}

    def _begin(self, item: dict[str, Any], prefix: str) -> tuple[str, Event]:
        self._open = {"id": f"{prefix}_{secrets.token_hex(24)}", "status": "in_progress", **item}
        return "response.output_item.added", {"output_index": len(self.done), "item": {**self._open}}

    def _close(self, status: str) -> Iterator[tuple[str, Event]]:
        if self._open is None:
            return
        item = self._open
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            place = {**self._place, "content_index": 0}
            yield "response.output_text.done", {**place, "text": part["text"], "logprobs": part["logprobs"]}
            yield "response.content_part.done", {**place, "part": part}
        else:
            fields = {**self._place, "name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", fields
        yield "response.output_item.done", {"output_index": len(self.done), "item": item}
        self.done.append(item)
        self._open = None


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
