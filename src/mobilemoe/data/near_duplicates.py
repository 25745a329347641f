"""Finds training conversations that are nearly the same as a held-out one.

Collections hold many questions several times, with other numbers, other options or one word changed. A split by whole
questions puts some of these on both sides, and then a model has practically seen what it is tested on.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from glob import escape
from pathlib import Path

from mobilemoe.chat import Message
from mobilemoe.data.sources import LocalSource
from mobilemoe.errors import DataError

WORDS = 5  # in a row
SHARE = 0.3  # of a held-out conversation's runs of words: what a near copy has at least
# Runs that more conversations have are the wording of a task, such as its options or tools.
MOST_SHARERS = 50  # of the training conversations
MOST_HOLDERS = 2  # of the held-out ones, which are few
LEAST_RUNS = 3  # too few runs prove nothing

Run = tuple[str, ...]


def read_conversations(path: Path | str) -> list[list[Message]]:
    """The conversations of a file, texts left out. Raises DataError if it cannot be read or holds none."""
    path = Path(path)
    source = LocalSource(path.parent, escape(path.name))
    found = [document.messages for document in source.documents(0) if document.messages is not None]
    if not found:
        raise DataError(f"{path} holds no conversation to keep apart from")
    return found


def near_duplicates(
    training: Sequence[Iterable[Message]], held_out: Sequence[Iterable[Message]], share: float = SHARE
) -> dict[int, int]:
    """Which of `training` is a near copy of which of `held_out`, by their indices.

    A near copy has at least `share` of the runs of WORDS words of a held-out conversation, case and punctuation aside.
    Runs that more than MOST_SHARERS training or MOST_HOLDERS held-out conversations have do not count; a held-out
    conversation that is left with fewer than LEAST_RUNS has no near copies.
    """
    holders: dict[Run, list[int]] = defaultdict(list)
    for place, messages in enumerate(held_out):
        for run in _runs(messages):
            holders[run].append(place)
    shared = [[run for run in _runs(messages) if run in holders] for messages in training]
    sharers = Counter(run for runs in shared for run in runs)
    telling = {run for run, held in holders.items() if sharers[run] <= MOST_SHARERS and len(held) <= MOST_HOLDERS}
    sizes = Counter(place for run in telling for place in holders[run])
    found: dict[int, int] = {}
    for place, runs in enumerate(shared):
        hits = Counter(held for run in runs if run in telling for held in holders[run])
        for held, count in hits.most_common():
            if sizes[held] >= LEAST_RUNS and count >= share * sizes[held]:
                found[place] = held
                break
    return found


def runs_of(words: Sequence[str], length: int) -> set[Run]:
    """All runs of `length` words."""
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def _runs(messages: Iterable[Message]) -> set[Run]:
    words = [word for message in messages for word in re.findall(r"\w+", message["content"].lower())]
    return runs_of(words, WORDS)
