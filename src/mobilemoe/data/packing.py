"""Packs documents into rows of fixed length, so that no token attends to or predicts another document.

T tokens of a row. A row consists of segments; each is a document, or a part of one that fits. A document that is cut at
the end of a row continues in the next row as a new segment, since it cannot attend to the row before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mobilemoe.data.sources import Encoded

NO_TARGET = -100  # the index that PyTorch's cross entropy ignores

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Passage(NamedTuple):
    """A document's N tokens (of any integer type), which of them are learnt, and the number of its source.

    A passage that is to stay `whole` is not cut at the end of a row, unless it is longer than a row.
    """

    ids_N: NDArray[Any]
    taught_N: Flags
    domain: int
    whole: bool = False


def passage_of(encoded: Encoded, domain: int, *, assistant_only: bool) -> Passage:
    """A document of source number `domain` as it is learnt: all of it, or of a conversation the assistant's words."""
    if assistant_only and encoded.taught_N is not None:
        return Passage(encoded.ids_N, encoded.taught_N, domain, whole=True)
    return Passage(encoded.ids_N, np.ones(len(encoded.ids_N), dtype=bool), domain)


class Row(NamedTuple):
    """One row of T tokens, all int64.

    `targets_T` is what each token should predict: the next token of the same segment, or NO_TARGET if that one is not
    taught or there is none. `positions_T` counts from 0 in each segment. `segments_T` numbers the segments of
    the row from 0: attention stays within equal numbers. `domains_T` numbers the sources.
    """

    tokens_T: Ids
    targets_T: Ids
    positions_T: Ids
    segments_T: Ids
    domains_T: Ids


def make_row(segments: Sequence[Passage]) -> Row:
    """Joins segments, none of them empty, to a row that is as long as all of them together."""
    lengths = np.array([len(segment.ids_N) for segment in segments])
    ends = np.cumsum(lengths)
    tokens_T = np.concatenate([segment.ids_N for segment in segments], dtype=np.int64)
    taught_T = np.concatenate([segment.taught_N for segment in segments])
    taught_T[ends - lengths] = False
    targets_T = np.full_like(tokens_T, NO_TARGET)
    np.copyto(targets_T[:-1], tokens_T[1:], where=taught_T[1:])
    positions_T = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    segments_T = np.repeat(np.arange(len(segments)), lengths)
    domains_T = np.repeat(np.array([segment.domain for segment in segments]), lengths)
    return Row(tokens_T, targets_T, positions_T, segments_T, domains_T)


class Packer:
    """Iterator over rows of `length` tokens from passages, in order; a last row that is not full is left out.

    A passage is cut where the row ends and continues in the next one. A passage that is to stay whole starts in the
    next row instead; the free end of this row is filled with its first tokens, without targets. (Padding would give
    the router tokens that occur in no text.)

    `rest` is the part of the last passage that no row has taken yet, or None. The next passage is read only when it is
    used up.
    """

    def __init__(self, passages: Iterator[Passage], length: int) -> None:
        self._passages = passages
        self._length = length
        self.rest: Passage | None = None

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        segments: list[Passage] = []
        room = self._length
        while room:
            passage = self.rest or next(self._passages)
            self.rest = None
            size = len(passage.ids_N)
            if size == 0:
                continue
            if size > room:
                waits = passage.whole and size <= self._length
                head, tail = cut_passage(passage, room)
                self.rest = passage if waits else tail
                passage = head._replace(taught_N=np.zeros_like(head.taught_N)) if waits else head
            segments.append(passage)
            room -= len(passage.ids_N)
        return make_row(segments)


def cut_passage(passage: Passage, place: int) -> tuple[Passage, Passage]:
    """The first `place` tokens of a passage, and the others."""
    ids_N, taught_N, domain, whole = passage
    head = Passage(ids_N[:place], taught_N[:place], domain, whole)
    return head, Passage(ids_N[place:], taught_N[place:], domain, whole)
