"""Batches for training, from a mixture and a tokenizer. The state is small JSON, and loading resumes bit for bit.

For speed, each source tokenises some pieces ahead. These are not part of the state: every queued piece knows its
position, so the state only says where each source's next unused piece is, and how many tokens have been used of the
piece that the last row was cut from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from mobilemoe.chat import ChatTemplate
from mobilemoe.data.encoding import Encoder
from mobilemoe.data.mixture import Mixture
from mobilemoe.data.packing import NO_TARGET, Ids, Packer, Passage, Row, cut_passage, passage_of
from mobilemoe.data.sources import Encoded
from mobilemoe.data.stream import PieceStream, Position
from mobilemoe.data.tokens import TokenSource
from mobilemoe.errors import DataError
from mobilemoe.tokenizer import Tokenizer

PATIENCE = 10_000  # rows in a row without anything to learn
READ_AHEAD = 256  # pieces of each source, about 1.5 MB of text: enough to keep the tokenizer's threads busy
STATE_VERSION = 2  # version 1 had another order of the pieces


class Batch(NamedTuple):
    """B rows of T tokens, all int64; the fields are those of `packing.Row`."""

    tokens_BT: Ids
    targets_BT: Ids
    positions_BT: Ids
    segments_BT: Ids
    domains_BT: Ids


_REMEDY = "what is learnt are an assistant's answers; where the question fills a row, raise train.sequence_length"


class LeftOut(NamedTuple):
    """How many rows held nothing to learn, and the document (`file:line`) at the start of the first of them."""

    rows: int = 0
    first: str = ""
    length: int = 0

    def __str__(self) -> str:
        """A sentence about the rows that were left out; empty if there were none."""
        if not self.rows:
            return ""
        return (
            f"rows of {self.length} tokens that hold nothing to learn were left out, {self.rows:,} so far, the first "
            f"at {self.first}: {_REMEDY}"
        )


class PackedLoader:
    """Endless iterator of batches. Rows that teach nothing are left out, and `left_out` counts them.

    `counts` says how many tokens of each source were used and how many epochs of it are complete. `domains` are the
    names of the sources in the recipe's order, which `Batch.domains_BT` refers to.
    Raises DataError if a source cannot be read, was prepared with another tokenizer, or the tokenizer lacks BOS or
    end-of-text.
    """

    def __init__(
        self, mixture: Mixture, tokenizer: Tokenizer, template: ChatTemplate, *, batch_size: int, sequence_length: int
    ) -> None:
        if batch_size < 1 or sequence_length < 2:
            raise DataError(f"a batch of {batch_size} rows of {sequence_length} tokens is too small: use 1 row of 2")
        self._mixture = mixture
        self._batch_size = batch_size
        self._sequence_length = sequence_length
        self._encoder = Encoder(tokenizer, template)
        for stream in mixture.streams.values():
            if isinstance(stream.source, TokenSource):
                stream.source.check_tokenizer(self._encoder.fingerprint)
        self.domains = tuple(mixture.streams)
        self._domain_numbers = {name: number for number, name in enumerate(self.domains)}
        self._queues = {name: _Queue(stream, self._encoder) for name, stream in mixture.streams.items()}
        self._packer = Packer(self._passages(), sequence_length)
        self._last: tuple[str, _Piece] | None = None
        self._taken: list[str] = []  # keys of the documents in the current row
        self.left_out = LeftOut()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = [self._row() for _ in range(self._batch_size)]
        return Batch(*map(np.stack, zip(*rows, strict=True)))

    def _row(self) -> Row:
        """The next row that teaches something. Raises DataError if the sources hold none from end to end."""
        ends = {name: queue.position.epoch + 2 for name, queue in self._queues.items()}
        for _ in range(PATIENCE):
            self._taken = [self._last[1].key] if self._last is not None and self._packer.rest is not None else []
            row = next(self._packer)
            if (row.targets_T != NO_TARGET).any():
                return row
            first = self.left_out.first or self._taken[0]
            self.left_out = LeftOut(self.left_out.rows + 1, first, self._sequence_length)
            if all(queue.position.epoch >= ends[name] for name, queue in self._queues.items()):
                break
        raise DataError(
            f"the data hold nothing to learn in rows of {self._sequence_length} tokens, from {self.left_out.first} on: "
            + _REMEDY
        )

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """What was read of each source: `tokens` so far (including the piece in progress) and complete `epochs`."""
        return {
            name: {"tokens": self._mixture.tokens[name], "epochs": queue.position.epoch}
            for name, queue in self._queues.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, as JSON values; this is cheap."""
        positions = {name: queue.position for name, queue in self._queues.items()}
        open_piece = None
        if self._last is not None and self._packer.rest is not None:
            name, piece = self._last
            positions[name] = piece.position
            open_piece = {"source": name, "used": len(piece.encoded.ids_N) - len(self._packer.rest.ids_N)}
        return {
            "version": STATE_VERSION,
            "identity": self._identity(),
            "positions": {name: list(position) for name, position in positions.items()},
            "tokens": dict(self._mixture.tokens),
            "open_piece": open_piece,
            "left_out": list(self.left_out),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`. The batch size may differ: the stream of rows stays the same.

        Raises DataError that says what differs if the state is of other data, another tokenizer or row length.
        """
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            raise DataError(
                "the loader's state is of another version, which read the data in another order: "
                "begin a new run, with this one's checkpoint as model.init"
            )
        saved, present = state.get("identity", {}), self._identity()
        differences = [
            f"{key} was {saved.get(key)!r} and is {present.get(key)!r}"
            for key in sorted({*saved, *present})
            if saved.get(key) != present.get(key)
        ]
        if differences:
            raise DataError(
                f"the loader's state belongs to other data: {'; '.join(differences)} (the hash is of the files' names "
                "and sizes); a run keeps the data that it began with: give other data a run of their own, with "
                "another --out, or remove this one's folder"
            )
        try:
            positions = {name: Position(*map(int, state["positions"][name])) for name in self._queues}
            tokens = {name: int(state["tokens"][name]) for name in self._queues}
            open_piece = state["open_piece"]
            left_out = LeftOut(*state.get("left_out", ()))
            opened = open_piece and (str(open_piece["source"]), int(open_piece["used"]))
            for name, queue in self._queues.items():
                queue.seek(positions[name])
            self._mixture.tokens.update(tokens)
            self.left_out = left_out
            self._packer = Packer(self._passages(), self._sequence_length)
            self._last = None
            if opened:
                name, used = opened
                piece = self._queues[name].take()
                size = len(piece.encoded.ids_N)
                if not 0 <= used < size:
                    raise ValueError(f"{used} tokens are used of a piece of {size}")
                self._last = (name, piece)
                self._packer.rest = cut_passage(self._passage(name, piece), used)[1]
        except (KeyError, TypeError, ValueError) as fault:
            raise DataError(f"the loader's state is damaged ({fault}): start from an older checkpoint") from None

    def _passages(self) -> Iterator[Passage]:
        while True:
            name = self._mixture.pick()
            piece = self._queues[name].take()
            self._mixture.record(name, len(piece.encoded.ids_N))
            self._last = (name, piece)
            self._taken.append(piece.key)
            yield self._passage(name, piece)

    def _passage(self, name: str, piece: _Piece) -> Passage:
        return passage_of(piece.encoded, self._domain_numbers[name], assistant_only=self._mixture.assistant_only)

    def _identity(self) -> dict[str, object]:
        own = {"sequence_length": self._sequence_length, "tokenizer": self._encoder.fingerprint}
        return self._mixture.identity | own


class _Piece(NamedTuple):
    position: Position
    encoded: Encoded
    key: str


class _Queue:
    """The tokenised pieces of one source, read ahead."""

    def __init__(self, stream: PieceStream, encoder: Encoder) -> None:
        self._stream = stream
        self._encoder = encoder
        self._ready: deque[_Piece] = deque()

    @property
    def position(self) -> Position:
        """The position of the next piece that `take` gives."""
        return self._ready[0].position if self._ready else self._stream.position

    def seek(self, position: Position) -> None:
        self._ready.clear()
        self._stream.seek(position)

    def take(self) -> _Piece:
        if not self._ready:
            positions, pieces = [], []
            for piece in islice(self._stream, READ_AHEAD):
                pieces.append(piece)
                after = self._stream.position
                positions.append(after._replace(offset=after.offset - 1))
            keys = (piece.key for piece in pieces)
            self._ready.extend(map(_Piece, positions, self._encoder.encode(pieces), keys))
        return self._ready.popleft()
