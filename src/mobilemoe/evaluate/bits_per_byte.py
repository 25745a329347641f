"""Bits per byte: how many bits a model needs for each byte of a text; it compares models of any tokenizer."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar

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

    def add(self, other: Self) -> None:
        """Adds the sums of other texts."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


S = TypeVar("S", bound=Score)


def score_file(
    model: Model, path: Path | str, *, window: int | None = None, on_text: Callable[[int], None] | None = None
) -> dict[str, Score]:
    """Scores of a JSONL file's texts by their "domain" (else "source", else "text"), and "all".

    A line holds "text", whose every token after BOS is scored, or "messages", scored as the chat template writes them,
    control tokens included, over the bytes of their contents. A text longer than `window` tokens (default: the
    model's context) is scored in windows that each begin anew behind BOS. `on_text` hears how many are done.
    """
    window = model.config.max_position_embeddings if window is None else window
    check_window(window, model.config.max_position_embeddings)

    def score(place: str, entry: dict[str, Any]) -> Score:
        ids, size = encode_entry(model, place, entry)
        return Score(_bits(model, ids, window), size, len(ids) - 1, 1)

    return sum_by_domain(Path(path), Score, score, on_text)


def sum_by_domain(
    path: Path, kind: type[S], score: Callable[[str, dict[str, Any]], S], on_text: Callable[[int], None] | None
) -> dict[str, S]:
    """Sums, and "all", of what `score(place, entry)` says of each entry of a JSONL file, by its domain."""
    found: dict[str, S] = defaultdict(kind)
    for done, (place, entry) in enumerate(_read_entries(path), start=1):
        text = score(place, entry)
        for name in {str(entry.get("domain") or entry.get("source") or "text"): None, "all": None}:
            found[name].add(text)
        if on_text is not None:
            on_text(done)
    if not found:
        raise DataError(f"{path} holds no text")
    return dict(found)


def check_window(window: int, longest: int) -> None:
    """UsageError for a window that leaves nothing to score, or is longer than what the model can take."""
    if not 2 <= window <= longest:
        raise UsageError(f"the window is {window}, but must be from 2 to {longest}")


def targets_of(ids: Sequence[int], window: int) -> Iterator[list[int]]:
    """What is scored behind ids[0] in each window of at most `window` ids."""
    for at in range(1, len(ids), window - 1):
        yield list(ids[at : at + window - 1])


def _bits(model: Model, ids: list[int], window: int) -> float:
    """-log2 of the probability of ids[1:] behind ids[0], in windows that each begin anew behind it."""
    windows = [(ids[:1], targets) for targets in targets_of(ids, window)]
    return -sum(logprob for logprob, _ in model.loglikelihoods(windows)) / math.log(2)


def encode_entry(model: Model, place: str, entry: dict[str, Any]) -> tuple[list[int], int]:
    """The ids of an entry, BOS first, and the bytes that they stand for; DataError names the `place` of a bad one."""
    messages = entry.get("messages")
    try:
        if not messages:
            return model.encode(entry["text"]), len(entry["text"].encode())
        ids = encode_chat(model.tokenizer, ChatTemplate.load(model.folder), messages, False)
    except TokenizerError as fault:
        raise DataError(f"{place}: {fault}") from None
    size = sum(len(message["content"].encode()) for message in messages)
    if size == 0:
        raise DataError(f"{place}: its messages are empty")
    return ids, size


def _read_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
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
