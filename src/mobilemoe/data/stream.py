"""One source as an endless shuffled stream of pieces, with a position that is five numbers.

Text is often stored by folder or package, and a short run that read it in stored order would see few of them. So every
epoch puts the shards in a new order and divides them into windows of many shards. The shards of a window are read side
by side, at speeds in proportion to their sizes, so that all of them end together. Every piece has a random key, and a
window is read several times, in rounds. A round gives the pieces with the lowest remaining keys, in order, as many as
fit a block in memory. If that would take too many rounds, each round has a fixed share of the keys instead, and gives
its pieces in several blocks. All keys follow from the seed and the place in the stream, so resuming means reading the
current round again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from mobilemoe.data.sources import Document, Source, Split, digest, is_held_out
from mobilemoe.errors import DataError

BLOCK_CHARS = 2**26  # in memory for each source: enough to mix thousands of pieces
PIECE_CHARS = 256  # memory that a piece takes in a block besides its text
CHARS_PER_TOKEN = 4
KEYS = 2**64


class Position(NamedTuple):
    """The next piece: number `offset` of a block in a window of an epoch. The block holds keys from `above` on, and
    starts `skip` pieces into its round."""

    epoch: int = 0
    window: int = 0
    above: int = 0
    skip: int = 0
    offset: int = 0


@dataclass(frozen=True)
class StreamConfig:
    """What fixes a stream besides its source: name and seed (for the shuffle), split and size of pieces."""

    name: str
    seed: int
    split: Split
    holdout: float
    piece_chars: int


class PieceStream:
    """Endless iterator over the pieces of one source's split; `position` is that of the next piece.

    Raises DataError when a whole epoch holds no document of the split.
    """

    def __init__(self, source: Source, config: StreamConfig) -> None:
        self.source = source
        self.config = config
        self.seek(Position())

    @property
    def position(self) -> Position:
        return Position(*self._block_start, self._offset)

    def seek(self, position: Position) -> None:
        """Continues at `position`, which an equal stream gave. Raises DataError if it cannot be one of this stream."""
        if min(position) < 0:
            raise self._no_such_place(position)
        self._windows = self._cut_epoch(position.epoch)
        if position.window >= len(self._windows) or position.above >= KEYS:
            raise self._no_such_place(position)
        self._block_start = position[:4]
        self._offset = position.offset
        self._block: list[Document] | None = None
        self._reading: Iterator[tuple[int, Document]] | None = None
        self._epoch_is_empty = position[1:] == (0, 0, 0, 0)  # as far as it was read

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        if self._block is None:
            self._block = self._load_block()
        if self._offset > len(self._block):
            raise self._no_such_place(self.position)
        while self._offset == len(self._block):
            self._enter(self._next_start)
            self._block = self._load_block()
        self._offset += 1
        return self._block[self._offset - 1]

    def _enter(self, start: tuple[int, int, int, int]) -> None:
        epoch = start[0]
        if epoch > self._block_start[0]:
            if self._epoch_is_empty:
                kept = f"the {self.config.split} split (holdout {self.config.holdout})"
                raise DataError(f"source {self.config.name!r} has no text in {kept}: add documents or change holdout")
            self._windows = self._cut_epoch(epoch)
            self._epoch_is_empty = True
        self._block_start, self._offset = start, 0
        self._block = None  # freed first, so that there is one in memory at a time

    def _load_block(self) -> list[Document]:
        """The shuffled block at the position; it may be empty at the end of a round."""
        epoch, window, above, skip = self._block_start
        least = min(KEYS, above + KEYS // self.source.most_rounds)  # where the keys of this round end
        if self._reading is None:
            self._reading = self._read_window(epoch, window)
            passed = (key for key, _ in self._reading if above <= key < least)
            if sum(1 for _ in islice(passed, skip)) < skip:
                raise self._no_such_place(self.position)
        end = least if skip else KEYS  # and none from here on
        room = BLOCK_CHARS
        block: list[tuple[int, int, Document]] = []  # a heap with the highest key first
        for number, (key, piece) in enumerate(self._reading):
            if not above <= key < end:
                continue
            heapq.heappush(block, (-key, number, piece))
            room -= characters(piece)
            while room < 0 and -block[0][0] >= least:
                key, _, piece = heapq.heappop(block)
                room += characters(piece)
                end = -key
            if room < 0:
                self._next_start = (epoch, window, above, skip + len(block))
                break
        else:
            self._reading = None
            self._next_start = (epoch, window, end, 0) if end < KEYS else self._next_window(epoch, window)
        self._epoch_is_empty &= not block
        return [piece for _, _, piece in sorted(block, reverse=True)]

    def _next_window(self, epoch: int, window: int) -> tuple[int, int, int, int]:
        return (epoch, window + 1, 0, 0) if window + 1 < len(self._windows) else (epoch + 1, 0, 0, 0)

    def _cut_epoch(self, epoch: int) -> list[list[int]]:
        """The shards in the epoch's order, in windows of as many shards as the rounds can read."""
        windows: list[list[int]] = []
        room = 0
        for shard in self._order(len(self.source.shards), "shards", epoch):
            if room <= 0 and (not windows or len(windows[-1]) >= self.source.side_by_side):
                windows.append([])
                room = self.source.most_rounds * BLOCK_CHARS
            windows[-1].append(shard)
            room -= self.source.sizes[shard]
        return windows

    def _read_window(self, epoch: int, window: int) -> Iterator[tuple[int, Document]]:
        """All pieces of a window with their keys, read from as many shards side by side as the source allows."""
        lanes: list[list[int]] = [[] for _ in range(min(self.source.side_by_side, len(self._windows[window])))]
        sizes = [0] * len(lanes)
        for shard in self._windows[window]:
            number = sizes.index(min(sizes))
            lanes[number].append(shard)
            sizes[number] += self.source.sizes[shard]
        readers = [self._read_lane(epoch, lane) for lane in lanes]
        waiting = [(0.0, number) for number in range(len(lanes))]  # the share of each lane that has been read
        while waiting:
            read, number = waiting[0]
            found = next(readers[number], None)
            if found is None:
                heapq.heappop(waiting)
            else:
                heapq.heapreplace(waiting, (read + characters(found[1]) / max(1, sizes[number]), number))
                yield found

    def _read_lane(self, epoch: int, shards: Sequence[int]) -> Iterator[tuple[int, Document]]:
        for shard in shards:
            documents = split_documents(self.source, shard, self.config.split, self.config.holdout)
            pieces = (piece for document in documents for piece in cut_document(document, self.config.piece_chars))
            for number, piece in enumerate(pieces):
                yield self._draw("piece", epoch, shard, number), piece

    def _order(self, count: int, *place: object) -> list[int]:
        """A permutation of range(count) that depends on seed, source name and place alone.

        Sorting raw generator output, not `Generator.permutation`: NumPy guarantees only the former across versions.
        """
        order: list[int] = np.argsort(np.random.PCG64(self._draw(*place)).random_raw(count), kind="stable").tolist()
        return order

    def _draw(self, *place: object) -> int:
        """A number of 64 bits that depends on seed, source name and place alone."""
        return int(digest("/".join(map(str, (self.config.seed, self.config.name, *place)))), 16)

    def _no_such_place(self, position: Position) -> DataError:
        return DataError(f"{tuple(position)} is no position in source {self.config.name!r}: the state is damaged")


def characters(piece: Document) -> int:
    """The size of a piece in a block, in characters; that of tokens is estimated."""
    if piece.encoded is not None:
        return PIECE_CHARS + CHARS_PER_TOKEN * len(piece.encoded.ids_N)
    if piece.text is not None:
        return PIECE_CHARS + len(piece.text)
    return PIECE_CHARS + sum(len(message["content"]) for message in piece.messages or ())


def split_documents(source: Source, shard: int, split: Split, holdout: float) -> Iterator[Document]:
    """The documents of one shard that belong to `split`, in file order."""
    for document in source.documents(shard):
        if is_held_out(document, holdout) == (split == "heldout"):
            yield document


def cut_document(document: Document, limit: int) -> Sequence[Document]:
    """The pieces of a text, each of at most `limit` characters; a conversation or prepared piece is never cut."""
    if document.text is None or len(document.text) <= limit:
        return (document,)
    *pieces, last = cut_text(document.text, limit)
    return [*(document._replace(text=piece, ends=False) for piece in pieces), document._replace(text=last)]


def cut_text(text: str, limit: int) -> list[str]:
    """Cuts `text` into pieces of at most `limit` characters that join to it again.

    Each cut is at the last paragraph end in the second half of the allowed length, else line end, else blank.
    """
    pieces = []
    start = 0
    while len(text) - start > limit:
        end = start + limit
        for boundary in ("\n\n", "\n", " "):
            found = text.rfind(boundary, start + limit // 2, start + limit)
            if found >= 0:
                end = found + len(boundary)
                break
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces
