"""Bits per byte: the bits that a model needs for each byte of a text. It compares models with different tokenizers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self, TypeVar

from mobilemoe.chat import ChatTemplate, encode_chat
from mobilemoe.data.sources import Document, document_of_row
from mobilemoe.errors import DataError, TokenizerError, UsageError
from mobilemoe.evaluate.results.rows import Row, read_rows
from mobilemoe.load import Model


@dataclass
class Score:
    """Sums over texts; `bits_per_byte` is their ratio."""

    bits: float = 0.0
    bytes: int = 0
    tokens: int = 0
    texts: int = 0

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.bytes

    def add(self, other: Self) -> None:
        """Adds the sums of other texts."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


S = TypeVar("S", bound=Score)


def score_file(
    model: Model, path: Path | str, *, window: int | None = None, on_text: Callable[[int], None] | None = None
) -> dict[str, Score]:
    """Scores of the texts in a JSONL file by their "domain" (else "source", else "text"), and for "all" of them.

    A line is read as training reads it (`document_of_row`). Of "text" every token is scored. Of "messages" everything
    that the chat template writes is scored, control tokens included, over the bytes of the contents. A text follows
    BOS, or end-of-text where there is no BOS. A text longer than `window` tokens (default: the model's context) is
    scored in windows that each follow that token. `on_text` is told how many texts are done. The file may be compressed
    (.gz, .zst).
    """
    window = model.config.max_position_embeddings if window is None else window
    check_window(window, model.config.max_position_embeddings)

    def score(place: str, document: Document) -> Score:
        return score_document(model, place, document, window)

    return sum_by_domain(Path(path), Score, score, on_text)


def score_document(model: Model, place: str, document: Document, window: int) -> Score:
    """The score of one document in windows of `window` tokens; DataError names its `place` if it has no probability.

    UsageError where the memory has no room for such a window.
    """
    ids, size = encode_document(model, place, document)
    if (needed := min(len(ids), window)) > model.context:
        raise UsageError(
            f"{place}: there is memory for {model.context:,} tokens of context, but a window has {needed:,}: give a "
            f"shorter window, such as --window {model.context}, or more memory"
        )
    bits = _bits(model, ids, window)
    if not math.isfinite(bits):
        raise DataError(f"{place}: the model gives this text no probability, but {bits}")
    return Score(bits, size, len(ids) - 1, 1)


def sum_by_domain(
    path: Path, kind: type[S], score: Callable[[str, Document], S], on_text: Callable[[int], None] | None
) -> dict[str, S]:
    """The sums of `score(place, document)` over the documents of a JSONL file, by domain and for "all"."""
    found: dict[str, S] = defaultdict(kind)
    done = 0
    for place, row in read_rows(path):
        document = document_of_row(row, f"{place},", place)
        if document is None:
            continue
        text = score(place, document)
        for name in {_domain(place, row): None, "all": None}:
            found[name].add(text)
        done += 1
        if on_text is not None:
            on_text(done)
    if not found:
        raise DataError(f"{path} holds no text")
    return dict(found)


def check_window(window: int, longest: int) -> None:
    """UsageError for a window that leaves nothing to score, or is longer than the model's context."""
    if longest < 2:
        raise UsageError(f"the model has a context of {longest} token, which leaves nothing to score")
    if not 2 <= window <= longest:
        raise UsageError(f"the window is {window}, but must be from 2 to {longest}")


def targets_of(ids: Sequence[int], window: int) -> Iterator[list[int]]:
    """The ids after ids[0] that each window of at most `window` ids scores."""
    for at in range(1, len(ids), window - 1):
        yield list(ids[at : at + window - 1])


def _bits(model: Model, ids: list[int], window: int) -> float:
    """-log2 of the probability of ids[1:] given ids[0], in windows that each begin with ids[0]."""
    windows = [(ids[:1], targets) for targets in targets_of(ids, window)]
    return -sum(logprob for logprob, _ in model.loglikelihoods(windows)) / math.log(2)


def encode_document(model: Model, place: str, document: Document) -> tuple[list[int], int]:
    """The ids of a document, after one that is not scored, and the bytes of its text. DataError names a bad `place`.

    The first id is BOS, else end-of-text, else the control token with which the chat template begins.
    """
    messages, text = document.messages, document.text
    tokenizer = model.tokenizer
    try:
        if messages:
            ids = encode_chat(tokenizer, ChatTemplate.load(model.folder), messages, False)
            size = sum(len(message["content"].encode()) for message in messages)
        else:
            assert text  # a document without messages has a text
            ids, size = tokenizer.encode(text), len(text.encode())
    except TokenizerError as fault:
        raise DataError(f"{place}: {fault}") from None
    if size == 0:
        raise DataError(f"{place}: its messages are empty")
    if not (messages and ids and ids[0] in tokenizer.special_ids):
        ids.insert(0, _start_id(model))
    if len(ids) < 2:
        raise DataError(f"{place}: the tokenizer or the chat template makes nothing of it that could be scored")
    return ids, size


def _start_id(model: Model) -> int:
    for token in (model.tokenizer.bos_id, model.tokenizer.end_of_text_id):
        if token is not None:
            return token
    raise UsageError(f"{model.folder} has neither a begin-of-text nor an end-of-text token to start a text from")


def _domain(place: str, row: Row) -> str:
    name = row.get("domain") or row.get("source") or "text"
    if not isinstance(name, str | int):
        raise DataError(f"{place}: its domain is {name!r:.60}, but must be a text")
    return str(name)
