"""What responses hold: whole answers and the events of a stream, of chats and of plain continuations."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mobilemoe.sampling import Choice
from mobilemoe.serve.calls import Call, CallPiece, CallReader, Pieces
from mobilemoe.serve.scheduler import Step
from mobilemoe.serve.tools import CallForm
from mobilemoe.tokenizer import StreamDecoder, Tokenizer

_LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON has not
Experts: TypeAlias = tuple[tuple[int, ...], ...]  # of one token: those of each layer, best first


@dataclass
class Written:
    """One answer so far; `new` is what the last step added."""

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    new: Pieces = field(default_factory=Pieces)
    choices: list[Choice] = field(default_factory=list)
    experts: list[Experts] = field(default_factory=list)
    tokens: int = 0
    logprob: float = 0.0  # of all its tokens, where they are asked for
    reused: int = 0  # of the prompt
    finished: str | None = None


class Answer:
    """The response to one request: `add` takes each step in turn, `whole` gives all at the end, `event` one step.

    There are `count` texts, `answers` of each prompt, and `prompt_tokens` are those of all prompts; `form` is that of
    calls, where texts may hold some. Log-probabilities and routing leave out the token that ends a text.
    """

    prefix = ""
    kind = event_kind = ""

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        *,
        count: int,
        answers: int,
        prompt_tokens: int,
        with_logprobs: bool,
        with_routing: bool,
        stop_ids: frozenset[int],
        warnings: list[str],
        form: CallForm | None = None,
    ) -> None:
        self._tokenizer, self._with_logprobs, self._stop_ids = tokenizer, with_logprobs, stop_ids
        self._with_routing, self.warnings = with_routing, warnings
        self._answers, self._prompt_tokens = answers, prompt_tokens
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._readers = [] if form is None else [CallReader(form) for _ in range(count)]
        self._written = [Written() for _ in range(count)]
        for written, reader in zip(self._written, self._readers, strict=False):
            written.calls = reader.calls

    def add(self, step: Step) -> None:
        written = self._written[step.index]
        written.new = Pieces(step.piece)
        if self._readers:
            written.new = self._readers[step.index].push(step.piece, step.finished is not None)
        written.text += written.new.text
        if step.choice.token not in self._stop_ids:
            if self._with_logprobs:
                written.choices.append(step.choice)
            if self._with_routing:
                written.experts.append(step.choice.experts)
        written.logprob += step.choice.logprob or 0.0
        written.tokens, written.finished, written.reused = step.tokens, step.finished, step.reused
        if step.finished == "stop" and self._readers and self._readers[step.index].has_whole_calls:
            written.finished = "tool_calls"

    def usage(self) -> dict[str, Any]:
        """Of each prompt, what its first answer found there already is `cached`."""
        cached = sum(written.reused for written in self._written[:: self._answers])
        made = sum(written.tokens for written in self._written)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self._prompt_tokens + made,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                **self._content(written),
                "logprobs": self._logprobs(index, written.choices),
                "finish_reason": written.finished,
                **self._routing(written.experts),
            }
            for index, written in enumerate(self._kept())
        ]
        return {"object": self.kind, **self._head, "choices": choices, "usage": self.usage(), **self._notes()}

    def opening(self) -> list[dict[str, Any]]:
        """The events before the first token."""
        return []

    def event(self, step: Step) -> dict[str, Any] | None:
        """Of the step that was added last; None where it brings nothing that a client could use."""
        written = self._written[step.index]
        token = [] if step.choice.token in self._stop_ids else [step.choice]
        shown = token if self._with_logprobs else []
        if not (written.new.text or written.new.calls or shown or step.finished or self._with_routing):
            return None
        return self._event(
            {
                "index": step.index,
                **self._delta(written.new),
                "logprobs": self._logprobs(step.index, shown) if shown else None,
                "finish_reason": written.finished,
                **self._routing([choice.experts for choice in token]),
            }
        )

    def added_text(self, step: Step) -> str | None:
        """Of the step that was added last; None where its event tells anything else."""
        new = self._written[step.index].new
        is_all = not (new.calls or step.finished or self._with_logprobs or self._with_routing)
        return new.text if new.text and is_all else None

    def text_event(self, index: int, text: str) -> dict[str, Any]:
        """That of a step which adds `text` to an answer, and nothing else."""
        return self._event({"index": index, **self._delta(Pieces(text)), "logprobs": None, "finish_reason": None})

    def usage_event(self) -> dict[str, Any]:
        return {**self._event(), "usage": self.usage()}

    def _kept(self) -> list[Written]:
        """Those that the whole answer shows."""
        return self._written

    def _event(self, *choices: dict[str, Any]) -> dict[str, Any]:
        return {"object": self.event_kind, **self._head, "choices": list(choices), **self._notes()}

    def _notes(self) -> dict[str, Any]:
        return {"x_mobilemoe": {"warnings": self.warnings}} if self.warnings else {}

    def _routing(self, experts: list[Experts]) -> dict[str, Any]:
        return {"x_mobilemoe": {"routing": experts}} if self._with_routing else {}

    def _spelt(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special=False)

    def _content(self, written: Written) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, new: Pieces) -> dict[str, Any]:
        raise NotImplementedError

    def _logprobs(self, index: int, choices: list[Choice]) -> dict[str, Any] | None:
        raise NotImplementedError


class ChatAnswer(Answer):
    prefix, kind, event_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [
            self._event({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
            for index in range(len(self._written))
        ]

    def _content(self, written: Written) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": written.text, "refusal": None}
        if written.calls:
            message["content"] = written.text or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in written.calls
            ]
        return {"message": message}

    def _delta(self, new: Pieces) -> dict[str, Any]:
        delta: dict[str, Any] = {"content": new.text} if new.text else {}
        if new.calls:
            delta["tool_calls"] = [_call_delta(piece) for piece in new.calls]
        return {"delta": delta}

    def _logprobs(self, index: int, choices: list[Choice]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {
            "content": [
                {
                    **self._token(choice.token, choice.logprob),
                    "top_logprobs": [self._token(token, logprob) for token, logprob in choice.top],
                }
                for choice in choices
            ],
            "refusal": None,
        }

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        spelt = self._tokenizer.token_bytes(token, skip_special=False)
        return {"token": self._spelt(token), "logprob": _sayable(logprob), "bytes": list(spelt)}


class CompletionAnswer(Answer):
    prefix, kind, event_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._n = self._copies = 1
        self._decoders: defaultdict[int, StreamDecoder] = defaultdict(lambda: StreamDecoder(self._tokenizer))
        self._offsets: defaultdict[int, int] = defaultdict(int)

    def keep_best(self, n: int, copies: int) -> None:
        """Of the `copies` texts for each prompt, the whole answer shows the `n` likeliest, by the token."""
        self._n, self._copies = n, copies

    def echo(self, prompts: Sequence[list[Choice]], alone: bool) -> None:
        """Puts each prompt before its texts, which have no token yet and get none if it is `alone`.

        Control tokens have no text.
        """
        for index, written in enumerate(self._written):
            prompt = prompts[index // self._copies]
            written.text = self._tokenizer.decode([choice.token for choice in prompt])
            written.choices = list(prompt) if self._with_logprobs else []
            written.finished = "length" if alone else None

    def opening(self) -> list[dict[str, Any]]:
        return [
            self._event(
                {
                    "index": index,
                    **self._delta(Pieces(written.text)),
                    "logprobs": self._logprobs(index, written.choices),
                    "finish_reason": written.finished,
                }
            )
            for index, written in enumerate(self._written)
            if written.text or written.choices
        ]

    def _kept(self) -> list[Written]:
        if self._copies == self._n:
            return self._written
        kept: list[Written] = []
        for start in range(0, len(self._written), self._copies):
            group = self._written[start : start + self._copies]
            kept += sorted(group, key=lambda each: each.logprob / each.tokens, reverse=True)[: self._n]
        return kept

    def _content(self, written: Written) -> dict[str, Any]:
        return {"text": written.text}

    def _delta(self, new: Pieces) -> dict[str, Any]:
        return {"text": new.text}

    def _logprobs(self, index: int, choices: list[Choice]) -> dict[str, Any] | None:
        """In the older form, with the place of each token in the text; each token is to be asked for once."""
        if not self._with_logprobs:
            return None
        offsets = []
        for choice in choices:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(self._decoders[index].push(choice.token))
        return {
            "tokens": [self._spelt(choice.token) for choice in choices],
            "token_logprobs": [None if choice.logprob is None else _sayable(choice.logprob) for choice in choices],
            "top_logprobs": [
                None
                if choice.logprob is None  # the first token of an echoed prompt
                else {self._spelt(token): _sayable(logprob) for token, logprob in choice.top}
                for choice in choices
            ],
            "text_offset": offsets,
        }


def _call_delta(piece: CallPiece) -> dict[str, Any]:
    if piece.id is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


def _sayable(logprob: float | None) -> float:
    return _LEAST_LOGPROB if logprob is None else max(logprob, _LEAST_LOGPROB)
