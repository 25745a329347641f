"""Continuous batching: texts that are continued together, each of which may join and leave at any step.

V vocabulary.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mobilemoe.engine.native import native, our_errors
from mobilemoe.engine.session import Session
from mobilemoe.ids import common_prefix
from mobilemoe.sampling import Choice, Sampling

if TYPE_CHECKING:
    from mobilemoe.engine.engine import Engine, Request

CHUNK = 512  # tokens computed between two chances to interrupt, join or leave


@dataclass
class _Member:
    session: Session
    ids: list[int]  # the prompt and what was chosen behind it; the session lags behind by at least one
    sampler: native.Sampler
    logprobs: int | None


class Batch:
    """Made by `Engine.batch`. What a member is given depends neither on the others nor on when they come and go."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._members: dict[int, _Member] = {}
        self._joined = 0

    def __len__(self) -> int:
        return len(self._members)

    def join(
        self,
        ids: Iterable[int],
        sampling: Sampling | None = None,
        *,
        logprobs: int | None = None,
        session: Session | None = None,
    ) -> int:
        """Adds a text that begins with `ids`; returns its number: 0, 1, 2 ... in the order of joining.

        `logprobs` asks for the log-probability of each chosen token and of that many likeliest ones. Of a `session`
        the tokens that `ids` begins with are kept and not computed again. UsageError for ids that cannot be.
        """
        checked = self._engine.check_ids(ids)
        sampling = sampling or Sampling()
        sampling.check_for(self._engine.vocab_size, logprobs)
        sampler = _sampler(sampling, self._engine.vocab_size)
        with our_errors():
            sampler.see(checked)
        session = self._engine.session() if session is None else session
        session.truncate(min(common_prefix(session.tokens, checked), len(checked) - 1))
        number, self._joined = self._joined, self._joined + 1
        self._members[number] = _Member(session, checked, sampler, logprobs)
        return number

    def leave(self, number: int) -> None:
        """Ends a text, finished or not; its session is free for others."""
        self._members.pop(number)

    def step(self) -> list[tuple[int, Choice]]:
        """One more token of every text whose prompt has been computed, and a chunk of the prompts that have not.

        Returns the numbers that got a token, with it. UsageError, before anything is computed, if a text has no room
        left in its context: the caller lets it leave in time.
        """
        requests: list[Request] = []
        chosen: list[int] = []
        room = max(1, CHUNK - len(self._members))  # for prompts, beside one token of every other text
        for number, member in self._members.items():
            # After an interrupt the session may be ahead: what was computed then gave no token yet.
            start = min(len(member.session), len(member.ids) - 1)
            if len(member.session) > start:
                member.session.truncate(start)
            left = len(member.ids) - start
            count = left if left == 1 else min(left, room)
            if count == 0:
                continue
            if left > 1:
                room -= count
            if count == left:
                chosen.append(number)
            requests.append((member.session, member.ids[start : start + count], int(count == left)))
        logits = self._engine.forward(requests)
        return [(number, self._choose(self._members[number], row)) for number, row in zip(chosen, logits, strict=True)]

    def _choose(self, member: _Member, logits_V: npt.NDArray[np.float32]) -> Choice:
        with our_errors():
            token, logprob, top = member.sampler.choose(logits_V, member.logprobs is not None, member.logprobs or 0)
        member.ids.append(token)
        return Choice(token) if member.logprobs is None else Choice(token, logprob, tuple(top))


def _sampler(sampling: Sampling, vocab_size: int) -> native.Sampler:
    with our_errors():
        return native.Sampler(
            vocab_size,
            temperature=float(sampling.temperature),
            top_k=min(int(sampling.top_k), vocab_size),
            top_p=float(sampling.top_p),
            min_p=float(sampling.min_p),
            repetition_penalty=float(sampling.repetition_penalty),
            presence_penalty=float(sampling.presence_penalty),
            frequency_penalty=float(sampling.frequency_penalty),
            seed=secrets.randbits(64) if sampling.seed is None else int(sampling.seed),
            logit_bias={int(token): float(bias) for token, bias in sampling.logit_bias.items()},
        )
