"""What may come next in a text: guides say it, in a thread beside the one in which the engine computes.

V vocabulary.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from queue import SimpleQueue
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[np.uint32]  # one for each token of the vocabulary, in words of 32, lowest first


class Guide(Protocol):
    """Says which tokens may come next in one text."""

    def take(self, token: int) -> None:
        """Tells it the token that was chosen."""

    def allowed(self) -> Bits:
        """bits_V of what may come next, at least one. What it raises ends its own text.

        Called in another thread, and again for the same token if an interrupt came between.
        """


_Answers: TypeAlias = "SimpleQueue[dict[int, Bits | Exception]]"


class Asker:
    """Asks guides in a thread of its own, which is started at the first use and ends with the asker.

    A pool of the standard library would do, but its futures take 10 us more, and a small model takes 200 us a step.
    """

    def __init__(self) -> None:
        self._questions: SimpleQueue[tuple[dict[int, Guide], _Answers] | None] | None = None

    def ask(self, guides: dict[int, Guide]) -> _Answers:
        """Where the answers will come, under the guides' numbers."""
        if self._questions is None:
            self._questions = SimpleQueue()
            threading.Thread(target=_answer, args=(self._questions,), name="guides", daemon=True).start()
            weakref.finalize(self, self._questions.put, None)
        answers: _Answers = SimpleQueue()
        self._questions.put((guides, answers))
        return answers


def _answer(questions: SimpleQueue[tuple[dict[int, Guide], _Answers] | None]) -> None:
    while (question := questions.get()) is not None:
        guides, answers = question
        answers.put(dict(_each_allowed(guides)))


def _each_allowed(guides: dict[int, Guide]) -> Iterable[tuple[int, Bits | Exception]]:
    for number, guide in guides.items():
        try:
            yield number, guide.allowed()
        except Exception as fault:  # a guide may raise anything
            yield number, fault
