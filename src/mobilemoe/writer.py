"""From logits to text, token by token: sampling, UTF-8 that never breaks, and stop texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from mobilemoe.errors import UsageError
from mobilemoe.sampling import Sampler, Sampling
from mobilemoe.tokenizer import StreamDecoder, Tokenizer


class Writer:
    """The text of one sequence behind `prompt_ids`: at most `room` tokens, up to a stop id or stop text.

    `last` is the newest token, `new_tokens` how many there are, `finished` why the text ended (None while it goes on).
    Raises UsageError for stop texts that cannot be.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        room: int,
        stop_ids: frozenset[int],
        stop: str | Sequence[str],
        sampling: Sampling,
    ) -> None:
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(isinstance(text, str) for text in stop):
            raise UsageError(f"stop is {stop!r}, but must be a text or several")
        if "" in stop:
            raise UsageError("a stop string is empty: it would stop before the first word")
        self._sampler = Sampler(sampling, seen=prompt_ids)
        self._decoder = StreamDecoder(tokenizer)
        self._stop_ids, self._stop, self._room = stop_ids, stop, room
        self._held = ""
        self.last = prompt_ids[-1]
        self.new_tokens = 0
        self.finished: Literal["stop", "length"] | None = None

    def push(self, logits_V: npt.NDArray[np.float32]) -> str:
        """Chooses a token and returns the text that is certain now; sets `finished` with the last one."""
        self.last = self._sampler.choose(logits_V)
        self.new_tokens += 1
        if self.last in self._stop_ids:
            self.finished = "stop"
            return self._release(self._decoder.flush())
        text = self._decoder.push(self.last)
        if self.new_tokens == self._room:
            self.finished = "length"
            text += self._decoder.flush()
        return self._release(text)

    def _release(self, text: str) -> str:
        """What may be shown of the held text: all before a stop string, and nothing that may become one."""
        text = self._held + text
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.finished, self._held = "stop", ""
            return text[: min(found)]
        longest = 0 if self.finished else max(map(len, self._stop), default=1) - 1
        keep = next(
            (n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
