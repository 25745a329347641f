"""Reads an answer that may hold calls of tools, while it is being written: its text, and each call as data."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Literal

from mobilemoe.serve.tools import CallForm


@dataclass
class Call:
    """A call that an answer asks for. The arguments are JSON, cut off where the answer is."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class CallPiece:
    """More of the `index`-th call of an answer: of its arguments, and in its first piece also the id and the name."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass
class Pieces:
    """What a step added to an answer: text, and parts of calls in their order."""

    text: str = ""
    calls: list[CallPiece] = field(default_factory=list)


class CallReader:
    """Reads what a grammar of `tools.calls_grammar` allows: `push` takes it piece by piece, the last one with `ends`.

    A call of which not even the name was written is left out.
    """

    def __init__(self, form: CallForm) -> None:
        self.calls: list[Call] = []
        self._form = form
        self._opening = re.compile(rf'\{{"name": "([\w-]+)", "{form.arguments}": ')
        self._place: Literal["start", "text", "opening", "arguments", "after"] = "start"
        self._held = ""  # not read yet
        self._depth = 0  # of objects and arrays in the arguments
        self._in_string = self._escaped = False

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and none that was cut off."""
        return bool(self.calls) and self._place == "after"

    def push(self, piece: str, ends: bool = False) -> Pieces:
        self._held += piece
        pieces = Pieces()
        while self._held and self._read(pieces, ends):
            pass
        return pieces

    def _read(self, pieces: Pieces, ends: bool) -> bool:
        """Takes what it can from `held`; whether there is more to read."""
        begin = self._form.begin
        if self._place == "start":
            # Without a lead-in the first character decides.
            self._place = "opening" if not begin and self._held.startswith("{") else "text"
        elif self._place in ("text", "after"):
            found = self._held.find(begin) if begin else -1
            kept = 0 if found >= 0 or ends else _overlap(self._held, begin)
            passed = self._held[: found if found >= 0 else len(self._held) - kept]
            if self._place == "text":
                pieces.text += passed
            self._held = self._held[len(passed) + (len(begin) if found >= 0 else 0) :]
            if found < 0:
                return False
            self._place = "opening"
        elif self._place == "opening":
            match = self._opening.match(self._held)
            if match is None:
                return False
            call = Call(f"call_{secrets.token_hex(12)}", match[1])
            pieces.calls.append(CallPiece(len(self.calls), "", call.id, call.name))
            self.calls.append(call)
            self._held, self._place = self._held[match.end() :], "arguments"
        else:
            arguments = self._take_arguments()
            self.calls[-1].arguments += arguments
            index = len(self.calls) - 1
            if not pieces.calls or pieces.calls[-1].index != index:
                pieces.calls.append(CallPiece(index))
            pieces.calls[-1].arguments += arguments
        return True

    def _take_arguments(self) -> str:
        """What is held of the arguments' object, up to its last brace."""
        for place, character in enumerate(self._held):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    taken, self._held, self._place = self._held[: place + 1], self._held[place + 1 :], "after"
                    return taken
        taken, self._held = self._held, ""
        return taken


def _overlap(text: str, begin: str) -> int:
    """The length of the longest end of `text` that may become `begin`."""
    return next((size for size in range(min(len(begin) - 1, len(text)), 0, -1) if begin.startswith(text[-size:])), 0)
