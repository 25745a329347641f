"""The texts that a domain is made of: those that choose the experts, and those held out to measure with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import escape
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mobilemoe.data.shards import read_json_lines, shard_kind
from mobilemoe.data.sources import Document, LocalSource, document_of_row
from mobilemoe.data.stream import characters, cut_document
from mobilemoe.errors import DataError
from mobilemoe.files import open_regular

PIECE_CHARS = 4096  # of a long document
_HELD_OUT = 10  # one in so many documents, or pieces where there are fewer documents than that
MOST_CHARS = 2**26  # read of all files of a domain: many times what is used
_SEED = 0


class Text(NamedTuple):
    """A document and the domain that it counts for: the "domain" of its row, else the name of what was read."""

    domain: str
    document: Document


class Split(NamedTuple):
    """Pieces of documents in an order that favours no file: the experts are chosen by the first, measured by the
    second.
    """

    chosen_by: list[Document]
    held_out: list[Document]


def read_texts(paths: Sequence[Path]) -> list[Text]:
    """The documents of files and of all files in folders: JSONL, parquet and plain texts, compressed or not.

    No more is read than MOST_CHARS characters of each path. Raises DataError that names what cannot be read or used.
    """
    found: list[Text] = []
    for path in paths:
        read = 0
        for text in _read(path):
            found.append(text)
            if (read := read + characters(text.document)) > MOST_CHARS:
                break
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: there is no text in it")
    return found


def split_texts(documents: Sequence[Document]) -> Split:
    """Holds out one in ten documents, or of fewer than ten documents one in ten of their pieces; at least one.

    DataError for a text that is too short to be split.
    """
    cut = [list(cut_document(document, PIECE_CHARS)) for document in documents]
    groups = cut if len(documents) >= _HELD_OUT else [[piece] for pieces in cut for piece in pieces]
    if len(groups) < 2:
        raise DataError(
            f"the text is too short to choose experts by one part of it and to measure with another: give two "
            f"documents, or more than {PIECE_CHARS:,} characters"
        )
    shuffle = np.random.default_rng(_SEED).permutation
    groups = [groups[place] for place in shuffle(len(groups))]
    held_out = list(chain.from_iterable(groups[::_HELD_OUT]))
    rest = [piece for place, group in enumerate(groups) if place % _HELD_OUT for piece in group]
    return Split(*([pieces[place] for place in shuffle(len(pieces))] for pieces in (rest, held_out)))


def _read(path: Path) -> Iterator[Text]:
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not path.is_dir():
        open_regular(path, DataError).close()
    root, pattern = (path, "**/*") if path.is_dir() else (path.parent, escape(path.name))
    for name in LocalSource(root, pattern).shards:
        if shard_kind(name) == "jsonl":
            yield from _read_rows(root / name, path.name)
        else:
            source = LocalSource(root, escape(name))
            yield from (Text(path.name, document) for document in source.documents(0))


def _read_rows(path: Path, name: str) -> Iterator[Text]:
    try:
        for number, row in read_json_lines(path):
            document = document_of_row(row, f"{path}, line {number},", f"{path}:{number}")
            if document is not None:
                yield Text(str(row.get("domain") or name), document)
    except OSError as fault:
        raise DataError(f"{path} cannot be read: {fault.strerror}") from None
