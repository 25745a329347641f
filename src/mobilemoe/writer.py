"""Turns chosen tokens into text, token by token: whole UTF-8 characters, stop texts, and the stream of a model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol

from mobilemoe.errors import UsageError
from mobilemoe.sampling import Choice
from mobilemoe.tokenizer import StreamDecoder, Tokenizer


class Writer:
    """The text of one sequence: at most `max_new_tokens` tokens, up to a stop id or stop text.

    `new_tokens` is their number so far, `finished` the reason why the text ended (None until then), `stop_text` the
    stop text that ended it, if one did. Raises UsageError for impossible stop texts.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, max_new_tokens: int, stop_ids: frozenset[int], stop: str | Sequence[str]
    ) -> None:
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(isinstance(text, str) for text in stop):
            raise UsageError(f"stop is {stop!r}, but must be a text or several")
        if "" in stop:
            raise UsageError("a stop string is empty: it would stop before the first word")
        self._decoder = StreamDecoder(tokenizer)
        self._stop_ids, self._stop, self._max_new_tokens = stop_ids, stop, max_new_tokens
        self._held = ""
        self.new_tokens = 0
        self.finished: Literal["stop", "length"] | None = None
        self.stop_text: str | None = None

    def push(self, token: int) -> str:
        """Takes one more token and returns the text that is now certain; sets `finished` with the last token."""
        self.new_tokens += 1
        if token in self._stop_ids:
            self.finished = "stop"
            return self._release(self._decoder.flush())
        text = self._decoder.push(token)
        if self.new_tokens == self._max_new_tokens:
            self.finished = "length"
            text += self._decoder.flush()
        return self._release(text)

    def _release(self, text: str) -> str:
        """The part of the held text that may be shown: what precedes a stop text, and nothing that may become one."""
        if not self._stop:
            return text
        text = self._held + text
        found = [(place, stop) for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            place, self.stop_text = min(found)
            self.finished, self._held = "stop", ""
            return text[:place]
        longest = 0 if self.finished else max(map(len, self._stop)) - 1
        keep = next(
            (n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


class Batch(Protocol):
    """Texts that a backend continues together, numbered 0, 1, 2 ...

    `step` gives the next token of each, or several, or nothing yet for a text whose prompt takes several steps. `leave`
    ends a text, which then gives no more.
    """

    def step(self) -> Iterable[tuple[int, Choice]]: ...

    def leave(self, number: int) -> None: ...


class Stream(Iterator[str]):
    """The pieces of the continuation of text 0 in `batch`, with statistics.

    `finished` is None until the text ends, then "stop" (a stop token or text) or "length". `prefill_seconds` (up to
    the first token) and `decode_seconds` are wall-clock time in the model, without the caller's. `choices` are the
    tokens so far, with log-probabilities if these were asked for.
    """

    def __init__(self, batch: Batch, writer: Writer, prompt_tokens: int) -> None:
        self._batch, self._writer = batch, writer
        self.prompt_tokens = prompt_tokens
        self.prefill_seconds = self.decode_seconds = 0.0
        self.choices: list[Choice] = []
        self._given: Iterator[tuple[int, Choice]] = iter(())

    @property
    def new_tokens(self) -> int:
        return self._writer.new_tokens

    @property
    def finished(self) -> str | None:
        return self._writer.finished

    def __next__(self) -> str:
        while not self._writer.finished:
            for number, choice in self._given:
                self.choices.append(choice)
                piece = self._writer.push(choice.token)
                if self.finished:
                    self._batch.leave(number)
                if piece:
                    return piece
            began = time.perf_counter()
            self._given = iter(self._batch.step())
            seconds = time.perf_counter() - began
            if self._writer.new_tokens == 0:
                self.prefill_seconds += seconds
            else:
                self.decode_seconds += seconds
        raise StopIteration


def write_all(batch: Batch, writers: Sequence[Writer]) -> list[str]:
    """The complete texts of a batch, each as it would be alone."""
    texts = [""] * len(writers)
    while not all(writer.finished for writer in writers):
        for number, choice in batch.step():
            texts[number] += writers[number].push(choice.token)
            if writers[number].finished:
                batch.leave(number)
    return texts
