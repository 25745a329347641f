"""Log-likelihoods of many continuations, as evaluation asks for them: prefixes that contexts share are computed once.

The contexts are sorted by their tokens, so that those with a common prefix are neighbours, and are taken a window at a
time. The common prefix of the window is computed first, then the rest of each context in its own session, then the
first continuation of every context, the second, and so on. The last token of a context is computed together with the
continuation, because the logits at its position score the continuation's first token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias

from mobilemoe.engine.core import Core, Score
from mobilemoe.ids import check_ids, common_prefix

Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]
COMPUTED = 2048  # most tokens of a window's contexts beyond their common prefix
HELD = 16_384  # most tokens that the sessions of a window hold


@dataclass
class _Context:
    """A context, its last token apart, with its continuations and their places in the caller's list."""

    prefix: list[int]
    last: int
    continuations: list[tuple[int, list[int]]]

    @property
    def held(self) -> int:
        return len(self.prefix) + max(len(continuation) for _, continuation in self.continuations)


def loglikelihoods(engine: Core, pairs: Sequence[Pair]) -> list[Score]:
    """For each (context, continuation) the sum of the tokens' log-probabilities in nats, and whether all are greedy.

    An empty continuation has probability 1. UsageError for empty contexts, ids outside the vocabulary and texts that
    are too long.
    """
    results: list[Score] = [(0.0, True)] * len(pairs)
    base = engine.session()
    for window in _windows(_contexts(engine, pairs)):
        shared = window[0].prefix[: common_prefix(window[0].prefix, window[-1].prefix)]
        base.truncate(common_prefix(base.tokens, shared))
        engine.forward([(base, shared[len(base) :], 0)])
        sessions = [base.fork(len(shared), context=context.held) for context in window]
        rests = [context.prefix[len(shared) :] for context in window]
        engine.forward([(session, rest, 0) for session, rest in zip(sessions, rests, strict=True)])
        for turn in zip_longest(*(context.continuations for context in window)):
            present = [(at, pair) for at, pair in enumerate(turn) if pair is not None]
            for at, _ in present:
                sessions[at].truncate(len(window[at].prefix))
            scored = engine.score(
                [(sessions[at], [window[at].last, *targets[:-1]], targets) for at, (_, targets) in present]
            )
            for (_, (place, _)), scores in zip(present, scored, strict=True):
                results[place] = math.fsum(logprob for logprob, _ in scores), all(greedy for _, greedy in scores)
    return results


def _contexts(engine: Core, pairs: Sequence[Pair]) -> list[_Context]:
    """Each context once, sorted by its tokens, with its continuations; empty continuations are left out."""
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
