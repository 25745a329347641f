"""Continuous batching: texts that are continued together; each may join and leave before any step.

What a new text shares with one that is here already is computed once: the new one waits for it and copies it.

L layers, A active experts, V vocabulary.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mobilemoe.engine.core import CHUNK, Core, Experts, Request, Session
from mobilemoe.engine.guides import Asker, Guide
from mobilemoe.engine.native import native, our_error, our_errors
from mobilemoe.errors import UsageError
from mobilemoe.ids import common_prefix
from mobilemoe.sampling import Choice, Sampling

# Tokens of a pass in which prompts are read while other texts are written. A prompt of S is read a tenth slower than by
# CHUNK, but the others wait 0.13 s for their next token and not 0.3.
CHUNK_BESIDE = 128
LEAST_SHARED = 32  # tokens: to take over fewer saves less than it costs


@dataclass(eq=False)
class _Member:
    session: Session
    ids: list[int]  # the prompt and the tokens chosen so far; the session holds at least one fewer
    sampler: native.Sampler
    logprobs: int | None
    guide: Guide | None
    experts: bool
    reused: int  # tokens of the prompt that were not computed for this text
    leader: _Member | None = None  # whose first `shared` tokens this text takes over as soon as they are computed
    shared: int = 0


class Batch:
    """Made by `Engine.batch`. The tokens of a text do not depend on the other texts, nor on when these come and go."""

    def __init__(self, engine: Core) -> None:
        self._engine = engine
        self._members: dict[int, _Member] = {}
        self._asker = Asker()
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
        guide: Guide | None = None,
        experts: bool = False,
    ) -> int:
        """Adds a text that begins with `ids`; returns its number: 0, 1, 2 ... in the order of joining.

        `logprobs` asks for the log-probability of each chosen token and of that many likeliest ones. A given `session`
        keeps the prefix that it shares with `ids`, which is not computed again. What a `guide` does not allow is never
        chosen, whatever the `sampling`. `experts` asks for those of the pass that chose each token. UsageError for ids
        outside the vocabulary, none, or more than the context takes, and for the experts of a model that has none.
        """
        checked = self._engine.check_ids(ids)
        sampling = sampling or Sampling()
        sampling.check_for(self._engine.vocab_size, logprobs)
        if experts and not self._engine.config.is_moe:
            raise UsageError(f"{self._engine.folder} has no experts to tell of")
        sampler = _sampler(sampling, self._engine.vocab_size)
        with our_errors():
            sampler.see(checked)
        session = self._engine.session() if session is None else session
        session.truncate(min(common_prefix(session.tokens, checked), len(checked) - 1))
        member = _Member(session, checked, sampler, logprobs, guide, experts, reused=len(session))
        self._find_leader(member)
        number, self._joined = self._joined, self._joined + 1
        self._members[number] = member
        return number

    def leave(self, number: int) -> None:
        """Ends a text, finished or not; its session is free for others."""
        left = self._members.pop(number)
        for member in self._members.values():
            if member.leader is left:
                _take_over(member)
                self._find_leader(member)

    def reused(self, number: int) -> int:
        """How many tokens of a text's prompt were not computed for it; known from its first token on."""
        return self._members[number].reused

    def step(self) -> list[tuple[int, Choice]]:
        """Computes one more token of every text whose prompt is done, and a chunk of the prompts that are not.

        Returns each new token with the number of its text. UsageError, before anything is computed, for a text whose
        context is full: the caller has to let it leave before. Raises what `attempt` would give a text, too.
        """
        chosen: list[tuple[int, Choice]] = []
        for number, result in self.attempt():
            if isinstance(result, Exception):
                raise result
            chosen.append((number, result))
        return chosen

    def attempt(self) -> list[tuple[int, Choice | Exception]]:
        """`step` for texts of several owners: one whose token cannot be chosen gets its error, the others their tokens.

        What concerns all of them, such as an engine file that was changed, is raised.
        """
        requests: list[Request] = []
        experts: dict[Session, Experts] = {}
        chosen: list[int] = []
        writes = any(len(member.ids) == len(member.session) + 1 for member in self._members.values())
        budget = max(1, (CHUNK_BESIDE if writes else CHUNK) - len(self._members))  # tokens of prompts
        for number, member in self._members.items():
            if member.leader is not None:
                if len(member.leader.session) < member.shared:
                    continue
                _take_over(member)
            # After an interrupt the session may be ahead: it was computed, but the next token was not chosen.
            computed = len(member.session)
            start = min(computed, len(member.ids) - 1)
            if computed > start:
                member.session.truncate(start)
            left = len(member.ids) - start
            count = left if left == 1 else min(left, budget)
            if count == 0:
                continue
            if left > 1:
                budget -= count
            if count == left:
                chosen.append(number)
                if member.experts:
                    config = self._engine.config
                    shape = (count, config.num_hidden_layers, config.num_experts_per_tok)
                    experts[member.session] = np.empty(shape, np.int32)
            requests.append((member.session, member.ids[start : start + count], int(count == left)))
        guides = {number: guide for number in chosen if (guide := self._members[number].guide) is not None}
        answers = self._asker.ask(guides) if guides else None
        logits = self._engine.forward(requests, experts)
        allowed = answers.get() if answers is not None else {}
        results: dict[int, Choice | Exception] = {}
        texts = {}
        for number, row_V in zip(chosen, logits, strict=True):
            member = self._members[number]
            with_logprob, top = member.logprobs is not None, member.logprobs or 0
            allowed_V = allowed.get(number)
            if isinstance(allowed_V, Exception):
                results[number] = allowed_V
            else:
                texts[number] = (member.sampler, row_V, with_logprob, top, allowed_V)
        with our_errors():
            choices = self._engine.native.choose([*texts.values()])
        for number, choice in zip(texts, choices, strict=True):
            try:
                results[number] = self._take(self._members[number], choice, experts)
            except Exception as fault:  # of its sampler or guide
                results[number] = fault
        return [(number, results[number]) for number in chosen]

    def _find_leader(self, member: _Member) -> None:
        """Lets a text follow the one before it with which it shares most, if that is more than it has already."""
        member.shared = 0
        for other in self._members.values():
            if other is member:  # only those before it lead, or two might wait for each other
                break
            shared = min(common_prefix(other.ids, member.ids), len(member.ids) - 1)
            if shared >= max(len(member.session) + LEAST_SHARED, member.shared + 1):
                member.leader, member.shared = other, shared

    def _take(
        self,
        member: _Member,
        choice: tuple[int, float, list[tuple[int, float]]] | native.NativeError,
        experts: Mapping[Session, Experts],
    ) -> Choice:
        if isinstance(choice, native.NativeError):
            raise our_error(choice)
        token, logprob, top = choice
        member.ids.append(token)
        if member.guide is not None:
            member.guide.take(token)
        used_LA = experts[member.session][-1].tolist() if member.experts else []
        used = tuple(map(tuple, used_LA))
        return Choice(token, experts=used) if member.logprobs is None else Choice(token, logprob, tuple(top), used)


def _take_over(member: _Member) -> None:
    """Copies what the leader has computed of the shared tokens; the text goes on by itself."""
    if member.leader is not None and (length := min(member.shared, len(member.leader.session))) > len(member.session):
        member.session.copy_from(member.leader.session, length)
        member.reused = length
    member.leader = None


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
