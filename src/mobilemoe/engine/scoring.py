"""Log-likelihoods of many continuations, as evaluation asks for them: what contexts share is computed once.

Sorted by their tokens, contexts that share a beginning are neighbours. They are taken a window at a time: first what
all contexts of the window begin with, then the rest of each in a session of its own, then the first continuation of
every context, the second, and so on. The last token of a context goes with the continuation: behind it stands the
first score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias

from mobilemoe.ids import check_ids, common_prefix

if TYPE_CHECKING:
    from mobilemoe.engine.engine import Engine

Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]
Result: TypeAlias = tuple[float, bool]
COMPUTED = 2048  # tokens of a window's contexts, beyond what they share
HELD = 16_384  # tokens of a window's sessions


@dataclass
class _Context:
    """A context, all but its last token, and the continuations behind it, each with its place in the caller's list."""

    prefix: list[int]
    last: int
    continuations: list[tuple[int, list[int]]]

    @property
    def held(self) -> int:
        return len(self.prefix) + max(len(continuation) for _, continuation in self.continuations)


def loglikelihoods(engine: Engine, pairs: Sequence[Pair]) -> list[Result]:
    """Sum of log-probabilities of each continuation's tokens, in nats, and whether each is the greedy choice.

    An empty continuation is certain. UsageError for empty contexts, ids that cannot be and texts that are too long.
    """
    results: list[Result] = [(0.0, True)] * len(pairs)
    base = engine.session()
    for window in _windows(_contexts(engine, pairs)):
        shared = window[0].prefix[: common_prefix(window[0].prefix, window[-1].prefix)]
        base.truncate(common_prefix(base.tokens, shared))
        engine.forward([(base, shared[len(base) :], 0)])
        sessions = [base.fork(len(shared), context=context.held) for context in window]
        rests = [context.prefix[len(shared) :] for context in window]
        engine.forward([(session, rest, 0) for session, rest in zip(sessions, rests, strict=True)])
        for turn in zip_longest(*(context.continuations for context in window)):
            there = [(at, pair) for at, pair in enumerate(turn) if pair is not None]
            for at, _ in there:
                sessions[at].truncate(len(window[at].prefix))
            scored = engine.score(
                [(sessions[at], [window[at].last, *targets[:-1]], targets) for at, (_, targets) in there]
            )
            for (_, (place, _)), scores in zip(there, scored, strict=True):
                results[place] = math.fsum(logprob for logprob, _ in scores), all(greedy for _, greedy in scores)
    return results


def _contexts(engine: Engine, pairs: Sequence[Pair]) -> list[_Context]:
    """Each context once, sorted by tokens, with what follows it."""
    found: dict[tuple[int, ...], _Context] = {}
    for place, (context, continuation) in enumerate(pairs):
        before = engine.check_ids(context)
        if len(continuation) == 0:
            continue
        after = check_ids(continuation, engine.vocab_size, engine.context + 1, behind=len(before))
        key = tuple(before)
        found.setdefault(key, _Context(before[:-1], before[-1], [])).continuations.append((place, after))
    return [found[key] for key in sorted(found)]


def _windows(contexts: list[_Context]) -> Iterator[list[_Context]]:
    window: list[_Context] = []
    for context in contexts:
        grown = [*window, context]
        shared = common_prefix(grown[0].prefix, context.prefix)
        computed = sum(len(each.prefix) - shared for each in grown)
        if window and (computed > COMPUTED or sum(each.held for each in grown) > HELD):
            yield window
            grown = [context]
        window = grown
    if window:
        yield window
