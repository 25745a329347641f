"""The held-out text of a mixture in rows, for validation during training: the same rows whenever it is read.

R rows of T tokens, G sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobilemoe.chat import ChatTemplate
from mobilemoe.data.config import DataConfig
from mobilemoe.data.encoding import Encoder
from mobilemoe.data.mixture import build_sources
from mobilemoe.data.packing import NO_TARGET, Packer, Passage, Row, passage_of
from mobilemoe.data.sources import Document, Source, is_held_out
from mobilemoe.data.stream import characters, cut_document
from mobilemoe.data.tokens import TokenSource
from mobilemoe.tokenizer import Tokenizer

READ_CHARS = 2**28  # of a source, looked through for held-out documents: seconds of a local one, minutes of a Hub's

MOST_PIECES = 4  # of a document, so that one long book does not stand for all books


@dataclass(frozen=True)
class HeldOutText:
    """Rows [R, T] whose `domains_T` count in `sources`, the sources that have held-out text; `missing` have none.

    `shares_G` are the sources' weights in the mixture, adding up to 1. `targets_G` and `bytes_G` say how many targets
    the rows hold of each source, and how many bytes of text those stand for (a control token stands for none).
    """

    rows: Row
    sources: tuple[str, ...]
    missing: tuple[str, ...]
    shares_G: NDArray[np.float64]
    targets_G: NDArray[np.int64]
    bytes_G: NDArray[np.int64]


def held_out_documents(source: Source, holdout: float, limit: float = float("inf")) -> Iterator[Document]:
    """The held-out documents of a source in file order, among its first `limit` characters or so."""
    read = 0
    for shard in range(len(source.shards)):
        for document in source.documents(shard):
            if is_held_out(document, holdout):
                yield document
            read += characters(document)
            if read > limit:
                return


def read_held_out_text(
    config: DataConfig, root: Path, tokenizer: Tokenizer, template: ChatTemplate, length: int, tokens: int
) -> HeldOutText | None:
    """About `tokens` tokens of held-out text in rows of `length`, an equal part of each source; None if there is none.

    A source gives the beginnings of its first held-out documents in file order, at least one row of them. What training
    would learn of a document is what is scored. Prepared shards hold the train split alone, so they give nothing.
    Raises DataError if a source cannot be read.
    """
    encoder = Encoder(tokenizer, template)
    rows_each = max(1, tokens // len(config.mixture) // length)
    found: dict[str, list[Row]] = {}
    for name, source in build_sources(config, root).items():
        if config.holdout == 0 or isinstance(source, TokenSource):
            continue
        pieces = (
            piece
            for document in held_out_documents(source, config.holdout, READ_CHARS)
            for piece in cut_document(document, config.piece_chars)[:MOST_PIECES]
        )
        passages = (
            passage_of(encoder.encode([piece])[0], len(found), assistant_only=config.train_on == "assistant")
            for piece in pieces
        )
        source_rows = _rows(passages, length, rows_each)
        if any((row.targets_T != NO_TARGET).any() for row in source_rows):
            found[name] = source_rows
    if not found:
        return None
    rows = Row(*map(np.stack, zip(*chain.from_iterable(found.values()), strict=True)))
    taught = rows.targets_T != NO_TARGET
    domains_N, targets_N = rows.domains_T[taught], rows.targets_T[taught]
    bytes_V = np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
    weights_G = np.array([source.weight for source in config.mixture if source.name in found])
    return HeldOutText(
        rows=rows,
        sources=tuple(found),
        missing=tuple(source.name for source in config.mixture if source.name not in found),
        shares_G=weights_G / weights_G.sum(),
        targets_G=np.bincount(domains_N, minlength=len(found)),
        bytes_G=np.bincount(domains_N, weights=bytes_V[targets_N], minlength=len(found)).astype(np.int64),
    )


def _rows(passages: Iterator[Passage], length: int, most: int) -> list[Row]:
    """The first `most` rows; the last one may be filled up with tokens that belong to no text and teach nothing."""
    first = next(passages, None)
    if first is None:
        return []
    filler = Passage(np.zeros(length, dtype=np.int64), np.zeros(length, dtype=bool), first.domain)
    packer = Packer(chain([first], passages, [filler]), length)
    return [row for _, row in zip(range(most), packer, strict=False)]
