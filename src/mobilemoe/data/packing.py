"""Documents into rows of fixed length, with nothing leaking from one document into another.

Shapes: T tokens of a row. A row is a run of segments; a segment is a document, or as much of one as fits. A document
cut by the end of a row goes on in the next row as a segment of its own, since it cannot attend to the row before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_TARGET = -100  # the index that PyTorch's cross entropy ignores

Ids = NDArray[np.int64]


class Row(NamedTuple):
    """One row of T tokens.

    `targets_T` is the next token of the same segment, NO_TARGET at a segment's last token. `positions_T` counts from 0
    in each segment. `segments_T` (int32) numbers the segments of the row from 0: attention stays within equal numbers.
    """

    tokens_T: Ids
    targets_T: Ids
    positions_T: Ids
    segments_T: NDArray[np.int32]


def make_row(segments: Sequence[Ids]) -> Row:
    """Lays segments (none empty) side by side; the row is as long as they are together."""
    lengths = np.array([len(segment) for segment in segments])
    ends = np.cumsum(lengths)
    tokens_T = np.concatenate(segments).astype(np.int64, copy=False)
    targets_T = np.roll(tokens_T, -1)
    targets_T[ends - 1] = NO_TARGET
    positions_T = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    segments_T = np.repeat(np.arange(len(segments), dtype=np.int32), lengths)
    return Row(tokens_T, targets_T, positions_T, segments_T)


class Packer:
    """Iterator over rows of `length` tokens from documents of token ids, in order; an unfilled last row is left out.

    `rest` is what the rows so far have not taken of the document read last; a document is read only when it is empty.
    """

    def __init__(self, documents: Iterator[Ids], length: int) -> None:
        self._documents = documents
        self._length = length
        self.rest: Ids = np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        segments: list[Ids] = []
        room = self._length
        while room:
            while not len(self.rest):
                self.rest = next(self._documents)
            segments.append(self.rest[:room])
            self.rest = self.rest[room:]
            room -= len(segments[-1])
        return make_row(segments)
