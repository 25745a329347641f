"""Bits per byte: how many bits a model needs for each byte of a text; it compares models of any tokenizer."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe.chat import ChatTemplate, encode_chat
from mobilemoe.errors import DataError, TokenizerError, UsageError
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

    def add(self, bits: float, size: int, tokens: int) -> None:
        self.bits, self.bytes = self.bits + bits, self.bytes + size
        self.tokens, self.texts = self.tokens + tokens, self.texts + 1


def score_file(
    model: Model, path: Path | str, *, window: int | None = None, on_text: Callable[[int], None] | None = None
) -> dict[str, Score]:
    """Scores of a JSONL file's texts by their "domain" (else "source", else "text"), and "all".

    A line holds "text", whose every token after BOS is scored, or "messages", scored as the chat template writes them,
    control tokens included, over the bytes of their contents. A text longer than `window` tokens (default: the
    model's context) is scored in windows that each begin anew behind BOS. `on_text` hears how many are done.
    """
    window = model.config.max_position_embeddings if window is None else window
    if not 2 <= window <= model.config.max_position_embeddings:
        raise UsageError(f"the window is {window}, but must be from 2 to {model.config.max_position_embeddings}")
    scores: dict[str, Score] = defaultdict(Score)
    for done, (place, entry) in enumerate(read_entries(Path(path)), start=1):
        try:
            ids, size = encode_entry(model, entry)
        except TokenizerError as fault:
            raise DataError(f"{place}: {fault}") from None
        if size == 0:
            raise DataError(f"{place}: its messages are empty")
        bits = _bits(model, ids, window)
        for name in {str(entry.get("domain") or entry.get("source") or "text"): None, "all": None}:
            scores[name].add(bits, size, len(ids) - 1)
        if on_text is not None:
            on_text(done)
    if not scores:
        raise DataError(f"{path} holds no text")
    return dict(scores)


def _bits(model: Model, ids: list[int], window: int) -> float:
    """-log2 of the probability of ids[1:] behind ids[0], in windows that each begin anew behind it."""
    windows = [(ids[:1], ids[at : at + window - 1]) for at in range(1, len(ids), window - 1)]
    return -sum(logprob for logprob, _ in model.loglikelihoods(windows)) / math.log(2)


def encode_entry(model: Model, entry: dict[str, Any]) -> tuple[list[int], int]:
    """The ids of an entry, BOS first, and the bytes that they stand for."""
    if entry.get("messages"):
        ids = encode_chat(model.tokenizer, ChatTemplate.load(model.folder), entry["messages"], False)
        return ids, sum(len(message["content"].encode()) for message in entry["messages"])
    return model.encode(entry["text"]), len(entry["text"].encode())


def read_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a file, each with its place for messages; blank lines are passed over."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                place = f"{path}, line {number}"
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError) as fault:
                    raise DataError(f"{place}, is not JSON: {fault}") from None
                text, messages = (entry.get("text"), entry.get("messages")) if isinstance(entry, dict) else (None, None)
                if not messages and not (isinstance(text, str) and text):
                    raise DataError(f"{place}: neither text nor messages")
                yield place, entry
    except OSError as fault:
        raise DataError(f"{path} cannot be read: {fault.strerror}") from None
    except UnicodeDecodeError as fault:
        raise DataError(f"{path} is not UTF-8 text: {fault}") from None
