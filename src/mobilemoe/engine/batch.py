"""Continuous batching: texts that are continued together; each may join and leave before any step.

What a new text shares with one that is here already is computed once: the new one waits for it and copies it. Guesses
of the next tokens (native/src/compute/speculation.h) may give a text several tokens in one step.

R rows of a pass, L layers, A active experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from mobilemoe.engine.core import CHUNK, Core, Experts, Floats, Request, Session
from mobilemoe.engine.guides import Asker, Bits, Guide
from mobilemoe.engine.member import Member, NativeText, native_sampler
from mobilemoe.engine.native import our_errors
from mobilemoe.errors import UsageError
from mobilemoe.ids import common_prefix
from mobilemoe.sampling import Choice, Sampling

# Tokens of a pass in which prompts are read while other texts are written. A prompt of S is read a tenth slower than by
# CHUNK, but the others wait 0.13 s for their next token and not 0.3.
CHUNK_BESIDE = 128
LEAST_SHARED = 32  # tokens: to take over fewer saves less than it costs


class Batch:
    """Made by `Engine.batch`. The tokens of a text do not depend on the other texts, nor on when these come and go."""

    def __init__(self, engine: Core) -> None:
        self._engine = engine
        self._members: dict[int, Member] = {}
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
        sampler = native_sampler(sampling, self._engine.vocab_size)
        with our_errors():
            sampler.see(checked)
        session = self._engine.session() if session is None else session
        session.truncate(min(common_prefix(session.tokens, checked), len(checked) - 1))
        speculation = self._engine.speculation()
        member = Member(session, checked, sampler, logprobs, guide, experts, speculation, reused=len(session))
        self._find_leader(member)
        number, self._joined = self._joined, self._joined + 1
        self._members[number] = member
        return number

    def leave(self, number: int) -> None:
        """Ends a text, finished or not; its session is free for others.

        The session holds all tokens but the last that `step` or `attempt` gave, even if these have more to give.
        """
        left = self._members.pop(number)
        if left.untold:
            left.session.truncate(len(left.ids) - left.untold - 1)
        for member in self._members.values():
            if member.leader is left:
                member.take_over()
                self._find_leader(member)

    def reused(self, number: int) -> int:
        """How many tokens of a text's prompt were not computed for it; known from its first token on."""
        return self._members[number].reused

    def step(self) -> Iterator[tuple[int, Choice]]:
        """Computes one more token of every text whose prompt is done, and a chunk of the prompts that are not.

        Gives each new token with the number of its text; where guesses were right a text has several. A text that
        leaves meanwhile gives no more. UsageError, before anything is computed, for a text whose context is full: the
        caller has to let it leave before. Raises what `attempt` would give a text, too.
        """
        return _raised(self.attempt())

    def attempt(self) -> Iterator[tuple[int, Choice | Exception]]:
        """`step` for texts of several owners: one whose token cannot be chosen gets its error, the others their tokens.

        What concerns all of them, such as an engine file that was changed, is raised.
        """
        return self._tell(self._compute())

    def _tell(self, results: Mapping[int, list[Choice | Exception]]) -> Iterator[tuple[int, Choice | Exception]]:
        for number, given in results.items():
            member = self._members.get(number)
            for left, result in zip(range(len(given) - 1, -1, -1), given, strict=True):
                if member is None or self._members.get(number) is not member:
                    break
                member.untold = left
                yield number, result

    def _compute(self) -> dict[int, list[Choice | Exception]]:
        """One pass: what each text got from it."""
        requests: dict[int, Request] = {}
        chosen: list[int] = []
        writes = any(len(member.ids) == len(member.session) + 1 for member in self._members.values())
        budget = max(1, (CHUNK_BESIDE if writes else CHUNK) - len(self._members))  # tokens of prompts
        for number, member in self._members.items():
            member.drafts = []
            if member.leader is not None:
                if len(member.leader.session) < member.shared:
                    continue
                member.take_over()
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
            requests[number] = (member.session, member.ids[start : start + count], int(count == left))
        self._draft(requests)
        guides = {number: guide for number in chosen if (guide := self._members[number].guide) is not None}
        answers = self._asker.ask(guides) if guides else None
        experts = self._places(requests)
        logits = self._engine.forward([*requests.values()], experts)
        rows: dict[int, Floats] = {}
        at = 0
        for number in chosen:
            outputs = requests[number][2]
            rows[number] = logits[at : at + outputs]
            at += outputs
        results: dict[int, list[Choice | Exception]] = {number: [] for number in chosen}
        while rows:
            allowed = answers.get() if answers is not None else {}
            rows = self._choose(rows, allowed, experts, results)
            guides = {number: guide for number in rows if (guide := self._members[number].guide) is not None}
            answers = self._asker.ask(guides) if guides else None
        return results

    def _draft(self, requests: dict[int, Request]) -> None:
        """Adds guesses of the next tokens to the requests, unless prompts are being read."""
        texts = []
        for number, (session, ids, _) in requests.items():
            speculation = self._members[number].speculation
            if speculation is None or len(ids) > 1:
                return
            texts.append((speculation, session.native, ids[0]))
        if not texts:
            return
        for number, tokens in zip([*requests], self._engine.native.draft(texts, len(texts)), strict=True):
            if tokens:
                session, ids, _ = requests[number]
                requests[number] = (session, [*ids, *tokens], 1 + len(tokens))
                self._members[number].drafts = tokens

    def _places(self, requests: Mapping[int, Request]) -> dict[Session, Experts]:
        """Arrays for the experts of those texts that tell them."""
        config = self._engine.config
        return {
            session: np.empty((len(ids), config.num_hidden_layers, config.num_experts_per_tok), np.int32)
            for number, (session, ids, outputs) in requests.items()
            if outputs and self._members[number].experts
        }

    def _choose(
        self,
        rows: Mapping[int, Floats],
        allowed: Mapping[int, Bits | Exception],
        experts: Mapping[Session, Experts],
        results: dict[int, list[Choice | Exception]],
    ) -> dict[int, Floats]:
        """Chooses tokens from logits_RV of each text, as many as its guesses are right.

        Returns what is left of a text that has a guide, which has to be asked again after each token.
        """
        texts: dict[int, NativeText] = {}
        for number, rows_RV in rows.items():
            allowed_V = allowed.get(number)
            if isinstance(allowed_V, Exception):
                results[number].append(allowed_V)
            else:
                member = self._members[number]
                texts[number] = member.to_choose(rows_RV if member.guide is None else rows_RV[:1], allowed_V)
        with our_errors():
            choices = self._engine.native.choose([*texts.values()])
        left: dict[int, Floats] = {}
        for number, given in zip(texts, choices, strict=True):
            member, taken = self._members[number], results[number]
            try:
                for choice in given:
                    used = experts.get(member.session)
                    row = len(taken) - len(member.drafts) - 1  # from the end: only the prompt's rows are before
                    taken.append(member.take(choice, None if used is None else used[row]))
            except Exception as fault:  # of its sampler or guide
                taken.append(fault)
            else:
                row = len(taken) - 1
                if member.guide is not None and row < len(member.drafts) and member.ids[-1] == member.drafts[row]:
                    left[number] = rows[number][1:]
                    continue
            if member.drafts:
                member.session.truncate(len(member.ids) - 1)
        return left

    def _find_leader(self, member: Member) -> None:
        """Lets a text follow the one before it with which it shares most, if that is more than it has already."""
        member.shared = 0
        for other in self._members.values():
            if other is member:  # only those before it lead, or two might wait for each other
                break
            shared = min(common_prefix(other.ids, member.ids), len(member.ids) - 1)
            if shared >= max(len(member.session) + LEAST_SHARED, member.shared + 1):
                member.leader, member.shared = other, shared


def _raised(results: Iterator[tuple[int, Choice | Exception]]) -> Iterator[tuple[int, Choice]]:
    for number, result in results:
        if isinstance(result, Exception):
            raise result
        yield number, result
