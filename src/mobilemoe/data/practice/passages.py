"""Passages of real text, and questions about them that can be answered by finding and copying what they say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path
from random import Random
from typing import NamedTuple

from mobilemoe.data.practice.reading import UNKNOWN, layout
from mobilemoe.data.practice.sums import Exchange
from mobilemoe.data.sources import HOLDOUT, Document, LocalSource, is_held_out
from mobilemoe.errors import DataError

LEAST, MOST = 150, 700  # characters of a passage
MOST_SENTENCES = 6
_MARKUP = re.compile(r"[|#*_`\[\]<>{}\\=\n]|https?:")
_SHORTENED = re.compile(r"\b(?:[A-Z][a-z]{0,3}|[a-z])\. ")  # Mr. or etc., no end of a sentence
_BETWEEN = re.compile(r"(?<=[.!?]) (?=[A-Z])")
_WORD = re.compile(r"[A-Za-z]{7,}")


class Passage(NamedTuple):
    """Two sentences or more of one document, and where they are from."""

    sentences: list[str]
    source: str
    license: str


def read_passages(files: Sequence[Path | str]) -> list[Passage]:
    """The paragraphs of plain prose in the training split of text files. Raises DataError if there are none."""
    found = [passage for document in _documents(files) for passage in _passages(document)]
    if not found:
        raise DataError(f"no paragraph of plain text in {', '.join(map(str, files))}")
    return found


def _documents(files: Sequence[Path | str]) -> Iterator[Document]:
    for path in map(Path, files):
        for document in LocalSource(path.parent, escape(path.name)).documents(0):
            if document.text is not None and not is_held_out(document, HOLDOUT):
                yield document


def _passages(document: Document) -> Iterator[Passage]:
    for paragraph in re.split(r"\n\s*\n", document.text or ""):
        text = paragraph.strip()
        if (
            LEAST <= len(text) <= MOST
            and not _MARKUP.search(text)
            and not _SHORTENED.search(text)
            and text.endswith((".", "!", "?"))
        ):
            sentences = _BETWEEN.split(text)
            if 2 <= len(sentences) <= MOST_SENTENCES:
                yield Passage(sentences, document.source, document.license)


def about_passage(random: Random, passage: Passage, other: Passage) -> list[Exchange]:
    """One to three questions about `passage`; some are about `other`, so that `passage` does not answer them."""
    text = " ".join(passage.sentences)
    here, there = _telling(passage.sentences), _telling(other.sentences)
    unsaid = [word for word in there if word.lower() not in text.lower()]
    exchanges: list[Exchange] = []
    for _ in range(random.randint(1, 3)):
        kind = random.randrange(8)
        if kind < 4 and here:
            word = random.choice(sorted(here))
            asked = random.choice(
                (f"What does the passage say about {word}?", f"What is said about {word}?", f"What about {word}?")
            )
            exchanges.append((asked, here[word]))
        elif kind == 4 and unsaid:
            word = random.choice(sorted(unsaid))
            asked = random.choice((f"What does the passage say about {word}?", f"What is said about {word}?"))
            exchanges.append((asked, random.choice(UNKNOWN)))
        elif kind == 5 and here and unsaid:
            word = random.choice(sorted(here if random.random() < 0.5 else unsaid))
            says = "Yes, the passage mentions" if word in here else "No, the passage does not mention"
            exchanges.append((f"Does the passage mention {word}?", f"{says} {word}."))
        else:
            which, sentence = random.choice((("first", passage.sentences[0]), ("last", passage.sentences[-1])))
            exchanges.append((f"What is the {which} sentence?", sentence))
    first, answer = exchanges[0]
    return [(layout(random, text, first), answer), *exchanges[1:]]


def _telling(sentences: Sequence[str]) -> dict[str, str]:
    """Long words that occur only once in the passage, not at the beginning of a sentence; with their sentences."""
    every = Counter(word.lower() for sentence in sentences for word in _WORD.findall(sentence))
    return {
        word: sentence
        for sentence in sentences
        for word in _WORD.findall(sentence)
        if every[word.lower()] == 1 and not sentence.startswith(word)
    }
