"""Finds test items in a training text: runs of 13 words that occur in both. The text is streamed.

The method is that of GPT-3 (arXiv 2005.14165, appendix C) with n fixed: words are compared in lower case without
punctuation, and an item counts as found if any 13 consecutive words of any of its texts occur in training. A text of 8
to 12 words must occur as a whole, and a shorter one is ignored. So is a run that more than 50 items share, because it
is the wording of the task. A found item is a suspect and no proof: a saying or a template may be in both. Only hashes
of the tests' words are in memory.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.data.mixture import build_sources, refuse_tokens
from mobilemoe.data.sources import LocalSource, Source
from mobilemoe.errors import DataError, MissingExtraError
from mobilemoe.evaluate.compare.paired import Examples
from mobilemoe.files import read_toml

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

WORDS = 13
LEAST_WORDS = 8
MOST_ITEMS = 50  # several questions may be about one passage, but what more items share is the task's own wording
_WORD = re.compile(r"\w+")
_SPACE = re.compile(r"\s")
_BREAK = "\n"  # stands between texts: no word is like it, so no run of words reaches over it
_BATCH = 2**17  # words that are looked at together
_PIECE = 2**20  # characters of a text that are cut into words together
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that every word's bits count; otherwise of no account
_SPARSE = 16  # places of the filter for each run: about one foreign place in 16 needs the slow look-up


@dataclass(frozen=True)
class Overlap:
    """A benchmark has `items`; `checked` of them were long enough to be looked for, and `found` are the ids of those
    found.
    """

    items: int
    checked: int
    found: tuple[str, ...]

    @property
    def share(self) -> float | None:
        """The share of the checked items that were found."""
        return len(self.found) / self.checked if self.checked else None

    def as_json(self) -> dict[str, Any]:
        return {"items": self.items, "checked": self.checked, "share": self.share, "found": list(self.found)}


@dataclass(frozen=True)
class Clean:
    """A benchmark's mean over all examples, and over those not found in training, with its standard error."""

    examples: int
    score: float
    clean: int
    clean_score: float | None
    clean_stderr: float | None


def find_overlaps(
    benchmarks: Mapping[str, Mapping[str, Sequence[str]]],
    training: Iterable[str],
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Overlap]:
    """The items of each benchmark that `training` contains.

    benchmarks: by name and by id, the texts of an item, as `task_items` gives them. training: texts, such as those of
    `training_texts`, which are each read once. `on_progress` is told how many characters have been read.
    """
    owners = [(name, key) for name, items in benchmarks.items() for key in items]
    runs = _Runs([texts for items in benchmarks.values() for texts in items.values()])
    passed, words = 0, list[str]()
    for text in training:
        for piece in _pieces(text):
            words += _words(piece)
            passed += len(piece)
            if len(words) >= _BATCH:
                runs.scan(words)
                words = words[1 - WORDS :]  # a run may continue in the next piece
                if on_progress is not None:
                    on_progress(passed)
        words.append(_BREAK)
    runs.scan(words)
    if on_progress is not None:
        on_progress(passed)
    found: dict[str, list[str]] = {name: [] for name in benchmarks}
    checked = dict.fromkeys(benchmarks, 0)
    for (name, key), is_checked, is_found in zip(owners, runs.checked(), runs.found(), strict=True):
        checked[name] += int(is_checked)
        if is_found:
            found[name].append(key)
    return {name: Overlap(len(items), checked[name], tuple(found[name])) for name, items in benchmarks.items()}


def task_items(tasks: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """The items of `build.build_tasks`, by benchmark, with the ids that `run.evaluate` gives their examples."""
    items: dict[str, dict[str, list[str]]] = {}
    for name, found in tasks.items():
        parts = {f"{task.task_name}/": task for task in found} if isinstance(found, list) else {"": found}
        items[name] = {
            f"{part}{place}": doc_texts(doc) for part, task in parts.items() for place, doc in enumerate(task.eval_docs)
        }
    return items


def doc_texts(doc: Any) -> list[str]:
    """Every string in a test item of the data set, at any depth, as a separate text."""
    if isinstance(doc, str):
        return [doc]
    parts: Iterable[Any] = doc.values() if isinstance(doc, Mapping) else doc if isinstance(doc, list | tuple) else ()
    return [text for part in parts for text in doc_texts(part)]


def training_texts(paths: Sequence[Path]) -> Iterator[str]:
    """The texts and messages of files (JSONL, plain text, parquet; .gz and .zst) and of recipes (.toml), one by one.

    All sources of a recipe are read, with its held-out documents. DataError for what does not exist or holds no text.
    """
    for path in paths:
        empty = True
        for source in _sources(path):
            for shard in range(len(source.shards)):
                for document in source.documents(shard):
                    empty = False
                    if document.text is not None:
                        yield document.text
                    for message in document.messages or ():
                        yield str(message["content"])
        if empty:
            raise DataError(f"the training text {path} holds no text")


def scores_without(examples: Examples, overlaps: Mapping[str, Overlap]) -> dict[str, Clean]:
    """Scores with and without the examples that were found, for each benchmark that was both scored and checked."""
    cleaned = {}
    for name in sorted(examples.keys() & overlaps.keys()):
        scores, found = examples[name], set(overlaps[name].found)
        clean = np.array([score for key, score in scores.items() if key not in found])
        n = len(clean)
        cleaned[name] = Clean(
            examples=len(scores),
            score=float(np.mean([*scores.values()])),
            clean=n,
            clean_score=float(clean.mean()) if n else None,
            clean_stderr=float(clean.std(ddof=1)) / sqrt(n) if n > 1 else None,
        )
    return cleaned


def _sources(path: Path) -> list[Source]:
    if not path.is_file():
        raise DataError(f"the training text {path} does not exist")
    if path.suffix != ".toml":
        return [LocalSource(path.parent, glob.escape(path.name))]
    try:
        from pydantic import ValidationError

        from mobilemoe.data.config import DataConfig
    except ModuleNotFoundError:
        raise MissingExtraError(f"reading {path.name}", "train") from None
    try:
        config = DataConfig.model_validate(read_toml(path, DataError)["data"])
    except (KeyError, ValueError, ValidationError) as fault:
        raise DataError(f"{path} has no usable [data] table: check it with `mobilemoe train {path} --plan`") from fault
    sources = build_sources(config, path.parent)
    refuse_tokens(sources)
    return [*sources.values()]


def _pieces(text: str) -> Iterator[str]:
    """`text`, cut at a line or word about every _PIECE characters."""
    start = 0
    while start < len(text):
        cut = _SPACE.search(text, start + _PIECE)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _hashes(words: Sequence[str]) -> Hashes:
    """Python's 64-bit hashes, whose key is new in each process, so that no text can be made to collide."""
    return np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)


def _beginnings(words: Hashes) -> Hashes:
    """Hashes of the LEAST_WORDS words from each place on (Horner's rule, wrapping)."""
    places = max(0, len(words) - LEAST_WORDS + 1)
    grams = words[:places].copy()
    for at in range(1, LEAST_WORDS):
        grams *= _FACTOR
        grams += words[at : at + places]
    return grams


def _longer(words: Hashes, places: Places, grams: Hashes) -> Iterator[tuple[int, Places, Hashes]]:
    """Extends the hashes of LEAST_WORDS words at `places` to each length up to WORDS: length, places, hashes."""
    for length in range(LEAST_WORDS, WORDS + 1):
        if length > LEAST_WORDS:
            fits = places + length <= len(words)
            places, grams = places[fits], grams[fits]
            grams = grams * _FACTOR + words[places + length - 1]
        yield length, places, grams


class _Runs:
    """The hashed runs of words of all items; `scan` marks those that occur in a text."""

    def __init__(self, items: Sequence[Sequence[str]]) -> None:
        texts = [(item, _hashes(_words(text))) for item, texts in enumerate(items) for text in texts]
        words = np.concatenate([np.empty(0, np.uint64), *(hashes for _, hashes in texts)])
        lengths = np.array([len(hashes) for _, hashes in texts], np.int64)
        item_of = np.repeat(np.array([item for item, _ in texts], np.int64), lengths)
        left = np.repeat(lengths.cumsum(), lengths) - np.arange(len(words))  # words of the text from here on
        span = np.repeat(np.minimum(lengths, WORDS), lengths)  # words of a run that begins here
        starts = np.flatnonzero((span >= LEAST_WORDS) & ((left == span) | ((span == WORDS) & (left > WORDS))))
        begins = _beginnings(words)[starts]
        runs = []
        for length, places, grams in _longer(words, starts, begins):
            chosen = span[places] == length
            runs.append((grams[chosen], item_of[places[chosen]]))
        self._items = len(items)
        self._grams, self._owners = _without_wording(*map(np.concatenate, zip(*runs, strict=True)))
        bits = max(10, (_SPARSE * len(self._grams)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(2**bits, bool)
        self._filter[begins >> self._shift] = True
        self._found = np.zeros(len(self._grams), bool)

    def scan(self, words: Sequence[str]) -> None:
        hashes = _hashes(words)
        begins = _beginnings(hashes)
        likely = np.flatnonzero(self._filter[begins >> self._shift])
        for _, _, grams in _longer(hashes, likely, begins[likely]):
            first = np.searchsorted(self._grams, grams)
            known = first < len(self._grams)
            known[known] = self._grams[first[known]] == grams[known]
            self._found[first[known]] = True

    def checked(self) -> NDArray[np.bool_]:
        return np.bincount(self._owners, minlength=self._items) > 0

    def found(self) -> NDArray[np.bool_]:
        """Ids of the items that were found. Where several items have one run, only the first was marked."""
        found = self._found[np.searchsorted(self._grams, self._grams)]
        return np.bincount(self._owners[found], minlength=self._items) > 0


def _without_wording(grams: Hashes, owners: Places) -> tuple[Hashes, Places]:
    """Pairs of a run and an item that has it, each once, by run, without runs that more than MOST_ITEMS items share."""
    order = np.argsort(grams, kind="stable")  # so that the items of a run stay in order
    grams, owners = grams[order], owners[order]
    once = np.ones(len(grams), bool)
    once[1:] = (grams[1:] != grams[:-1]) | (owners[1:] != owners[:-1])
    grams, owners = grams[once], owners[once]
    telling = np.searchsorted(grams, grams, "right") - np.searchsorted(grams, grams) <= MOST_ITEMS
    return grams[telling], owners[telling]
