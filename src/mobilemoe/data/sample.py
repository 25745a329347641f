"""Small excerpts of a mixture, to be kept in a repository: text for a test run, and held-out text for evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mobilemoe.data.mixture import build_sources, refuse_tokens
from mobilemoe.data.sources import Document, Source, Split, digest, messages_as_stored
from mobilemoe.data.stream import cut_document, split_documents
from mobilemoe.errors import DataError
from mobilemoe.files import atomic_folder, write_atomic

if TYPE_CHECKING:
    from mobilemoe.data.config import DataConfig

ROUNDS = 8  # excerpts of one source at most, each taken only when every source has given the one before
WINDOW = 100  # characters: texts that share twice as many in a row count as copies
MIN_CHARS = 200  # a shorter excerpt of a text says nothing about a model


def write_sample(
    config: DataConfig,
    root: Path | str,
    out: Path | str,
    total_bytes: int,
    split: Split,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Writes about equal shares of `total_bytes` for each source of the recipe, from as many documents as fit.

    For "heldout" `out` is one JSONL file whose entries say their `domain` (the source's name in the recipe), and what
    they teach has no run of 200 characters in common with any document of the train split: copied modules and pages
    made from one form would make a model look better than it is. For "train" `out` is a new folder with a file
    `NAME-00.jsonl` for each source. An excerpt is one piece of at most `config.piece_chars` characters. `on_progress`
    is called with the number of documents looked at.
    Raises DataError if a source has nothing in the split, or the folder exists.
    """
    out = Path(out)
    sources = build_sources(config, root)
    refuse_tokens(sources)
    looked_at = 0

    def documents(source: Source, of: Split) -> Iterator[Document]:
        nonlocal looked_at
        for shard in range(len(source.shards)):
            for document in split_documents(source, shard, of, config.holdout):
                looked_at += 1
                if on_progress is not None:
                    on_progress(looked_at)
                yield document

    candidates = {
        name: _ranked_pieces(documents(source, split), config.piece_chars) for name, source in sources.items()
    }
    if split == "heldout":
        train = chain.from_iterable(documents(source, "train") for source in sources.values())
        known = _train_windows(candidates, train)
        for name, pieces in candidates.items():
            candidates[name] = [piece for piece in pieces if known.isdisjoint(_windows(_taught(piece), stride=1))]
    lines = {name: _fill(pieces, name, split, total_bytes // len(sources)) for name, pieces in candidates.items()}
    for name, chosen in lines.items():
        if not chosen:
            raise DataError(f"source {name!r} has no excerpt in the {split} split: add documents or change holdout")
    if split == "heldout":
        write_atomic(out, "".join(line for chosen in lines.values() for line in chosen))
        return
    with atomic_folder(out, DataError) as folder:
        for name, chosen in lines.items():
            (folder / f"{name}-00.jsonl").write_text("".join(chosen), encoding="utf-8")


def _ranked_pieces(documents: Iterator[Document], limit: int) -> list[Document]:
    """Excerpts in the order of choice: first one of each document, documents in an order that a hash gives."""
    ranked = []
    for document in documents:
        for turn, piece in enumerate(_some_pieces(document, limit)):
            ranked.append((turn, digest(f"{piece.source}/{piece.key}"), piece))
    return [piece for _, _, piece in sorted(ranked, key=lambda entry: entry[:2])]


def _fill(pieces: list[Document], domain: str, split: Split, limit: int) -> list[str]:
    """JSON lines of at most `limit` bytes together: each piece that still fits."""
    chosen = []
    for piece in pieces:
        line = _json_line(piece, domain, split)
        size = len(line.encode())
        if size <= limit:
            chosen.append(line)
            limit -= size
    return chosen


def _train_windows(candidates: dict[str, list[Document]], train: Iterator[Document]) -> set[int]:
    """The windows of the candidates that occur in the train split.

    Train text is cut into adjacent windows: any common run of two window lengths contains one of them.
    """
    wanted = {
        window for pieces in candidates.values() for piece in pieces for window in _windows(_taught(piece), stride=1)
    }
    known: set[int] = set()
    for document in train:
        known.update(wanted.intersection(_windows(_taught(document), stride=WINDOW)))
    return known


def _windows(text: str, stride: int) -> Iterator[int]:
    return (hash(text[start : start + WINDOW]) for start in range(0, len(text) - WINDOW + 1, stride))


def _taught(document: Document) -> str:
    """A text, or the assistant's words: instructions for a tool may stand in many conversations."""
    if document.text is not None:
        return document.text
    return "\n".join(message["content"] for message in document.messages or [] if message["role"] == "assistant")


def _some_pieces(document: Document, limit: int) -> list[Document]:
    """Up to ROUNDS pieces in an order that a hash gives, so that not every excerpt is a title page."""
    pieces = [piece for piece in cut_document(document, limit) if _length_is_right(piece, limit)]
    order = sorted(range(len(pieces)), key=lambda number: digest(f"{document.key}/{number}"))
    return [pieces[number] for number in order[:ROUNDS]]


def _length_is_right(piece: Document, limit: int) -> bool:
    if piece.text is not None:
        return len(piece.text) >= MIN_CHARS
    return sum(len(message["content"]) for message in piece.messages or []) <= limit


def _json_line(piece: Document, domain: str, split: Split) -> str:
    entry: dict[str, object] = (
        {"text": piece.text} if piece.text is not None else {"messages": messages_as_stored(piece)}
    )
    entry |= {"source": piece.source, "license": piece.license}
    if split == "heldout":
        entry["domain"] = domain
    return json.dumps(entry, ensure_ascii=False) + "\n"
