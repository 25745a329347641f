"""One source as an endless shuffled stream of pieces, with a position that is four small numbers.

Every epoch puts the shards in a new order. Documents of the wanted split are cut into pieces; consecutive pieces
(across shards, so that many small files mix too) form blocks, and each block is shuffled. All orders follow from the
seed and the place in the stream, so resuming means reading again from the shard where the current block begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from mobilemoe.data.sources import Document, Source, Split, digest, is_held_out
from mobilemoe.errors import DataError

BLOCK_PIECES = 4096  # about 24 MB of text: enough to mix dozens of books, little enough to hold for every source


class Position(NamedTuple):
    """The next piece: number `offset` of the shuffled block that begins `skip` pieces into an epoch's n-th shard."""

    epoch: int = 0
    shard: int = 0
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
    """Iterator over the pieces of one source's split, for ever; `position` is that of the next piece.

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
        """Goes on at `position`, taken from an equal stream. Raises DataError if it cannot be one of this stream."""
        if min(position) < 0 or position.shard >= len(self.source.shards):
            raise self._no_such_place(position)
        self._block_start = position[:3]
        self._offset = position.offset
        self._block: list[Document] | None = None
        self._reading: Iterator[_Place] | None = None

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        block = self._load_block() if self._block is None else self._block
        if self._offset > len(block):
            raise self._no_such_place(self.position)
        while self._offset == len(block):
            self._block_start, self._offset = self._next_block, 0
            block = self._load_block()
        self._offset += 1
        return block[self._offset - 1]

    def _load_block(self) -> list[Document]:
        """Reads and shuffles the block at the position's shard and skip; empty at the end of an epoch."""
        epoch, shard, skip = self._block_start
        if self._reading is None:
            self._reading = islice(self._read_epoch(epoch, shard), skip, None)
        places = list(islice(self._reading, BLOCK_PIECES))
        if places:
            self._next_block = (epoch, places[-1].shard, places[-1].number + 1)
        elif shard == skip == 0:
            kept = f"the {self.config.split} split (holdout {self.config.holdout})"
            raise DataError(f"source {self.config.name!r} has no text in {kept}: add documents or change holdout")
        else:
            self._next_block = (epoch + 1, 0, 0)
            self._reading = None
        order = self._order(len(places), "block", epoch, shard, skip)
        self._block = [places[number].piece for number in order]
        return self._block

    def _read_epoch(self, epoch: int, first_shard: int) -> Iterator[_Place]:
        order = self._order(len(self.source.shards), "shards", epoch)
        for shard in range(first_shard, len(order)):
            documents = split_documents(self.source, order[shard], self.config.split, self.config.holdout)
            pieces = (piece for document in documents for piece in cut_document(document, self.config.piece_chars))
            for number, piece in enumerate(pieces):
                yield _Place(shard, number, piece)

    def _order(self, count: int, *place: object) -> list[int]:
        """A permutation of range(count) that depends on seed, source name and place alone.

        Sorting raw generator output, not `Generator.permutation`: NumPy promises only the former for ever.
        """
        seed = int(digest("/".join(map(str, (self.config.seed, self.config.name, *place)))), 16)
        order: list[int] = np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable").tolist()
        return order

    def _no_such_place(self, position: Position) -> DataError:
        return DataError(f"{tuple(position)} is no position in source {self.config.name!r}: the state is damaged")


class _Place(NamedTuple):
    shard: int
    number: int
    piece: Document


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
