"""Joins conversations of one question and one answer into conversations of several turns, some with a system message.

Apart from the system messages below, no text is added: each turn is a whole conversation of the sources, and joined
ones are of the same category. They teach a model to continue after an answer, but not to refer back to it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path

from mobilemoe.chat import Message
from mobilemoe.data.near_duplicates import near_duplicates, read_conversations
from mobilemoe.data.sources import Document, LocalSource, digest, is_held_out, messages_as_stored
from mobilemoe.errors import DataError
from mobilemoe.files import refuse_existing, write_atomic

JOINED = 0.4  # share of the written conversations that get a second turn, where there is one to add
MOST_TURNS = 4
WITH_SYSTEM = 0.3

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a friendly assistant who keeps to the question.",
    "Answer as well as you can.",
    "You are an assistant that runs on the user's own device.",
)
SYSTEM_MESSAGES_BY_CATEGORY = {
    "reasoning": (
        "Give your reason first and the answer last.",
        "Think before you answer, and keep it short.",
        "You answer everyday questions and say why.",
    ),
    "math": (
        "You help with arithmetic. Show each step, and write the result after ####.",
        "Solve the problem step by step.",
    ),
    "chat": (
        "Play the part that the user gives you.",
        "You like to tell stories, and you stay in character.",
        "You are a lively partner in conversation.",
    ),
}
TOOLS_MESSAGE = "You can call these tools:\n"


def write_chats(
    files: Sequence[Path | str],
    out: Path | str,
    seed: int,
    holdout: float,
    apart_from: Path | str | None = None,
) -> dict[str, int]:
    """Writes the conversations of `files` that are not held out to the JSONL file `out`, each once; returns counts.

    Each conversation of `files` is held out or not by its question, as in training on `files` with this `holdout`, so
    no joined conversation contains a held-out one. Conversations that already have a system message or several turns
    are written unchanged. The same files (by name) and seed give the same bytes. Near copies of the conversations in
    the file `apart_from` are left out (see `near_duplicates`).
    Raises DataError if a file cannot be read or holds texts, or `out` exists.
    """
    out = Path(out)
    refuse_existing(out, DataError)
    counts = Counter(read=0, held_out=0, written=0, several_turns=0, with_system=0)
    kept = []
    for document in _documents(files):
        if document.messages is None:
            raise DataError(f"{document.key} is a text, but conversations are joined here: leave its file out")
        counts["read"] += 1
        if is_held_out(document, holdout):
            counts["held_out"] += 1
        else:
            kept.append(document)
    if not counts["read"]:
        raise DataError(f"there is no conversation in {', '.join(map(str, files))}")
    if apart_from is not None:
        copies = near_duplicates([document.messages or [] for document in kept], read_conversations(apart_from))
        counts["near_copies"] = len(copies)
        kept = [document for place, document in enumerate(kept) if place not in copies]
    groups: dict[str, list[tuple[float, Document]]] = {}
    for document in kept:
        groups.setdefault(document.category, []).append((_draw(seed, "order", document.key), document))
    lines = []
    for category, ranked in groups.items():
        ranked.sort(key=lambda entry: entry[0])
        documents = [
            document._replace(messages=_tools_as_system(messages_as_stored(document))) for _, document in ranked
        ]
        for group in _grouped(documents, seed):
            messages = [message for document in group for message in document.messages or []]
            if _is_single(group[0]):
                messages = [*_system_message(group[0], seed), *messages]
            entry = {
                "messages": messages,
                "source": " + ".join(sorted({document.source for document in group})),
                "license": " + ".join(sorted({document.license for document in group})),
                "category": category,
            }
            counts["written"] += 1
            counts["several_turns"] += sum(message["role"] == "assistant" for message in messages) > 1
            counts["with_system"] += messages[0]["role"] == "system"
            lines.append((_draw(seed, "place", group[0].key), json.dumps(entry, ensure_ascii=False) + "\n"))
    lines.sort()
    write_atomic(out, "".join(line for _, line in lines))
    return dict(counts)


def _documents(files: Sequence[Path | str]) -> Iterator[Document]:
    for path in map(Path, files):
        source = LocalSource(path.parent, escape(path.name))
        yield from source.documents(0)


def _grouped(documents: Sequence[Document], seed: int) -> Iterator[list[Document]]:
    """Groups of neighbours that become one conversation each: one, or two to MOST_TURNS if they may be joined.

    The draw is made for each first turn, so JOINED is the share of the conversations that are written.
    """
    start = 0
    while start < len(documents):
        key = documents[start].key
        turns = 1
        if _draw(seed, "join", key) < JOINED:
            turns = 2 + int(_draw(seed, "turns", key) * (MOST_TURNS - 1))
        group = [documents[start]]
        if _is_single(documents[start]):
            for document in documents[start + 1 : start + turns]:
                if not _is_single(document):
                    break
                group.append(document)
        yield group
        start += len(group)


def _is_single(document: Document) -> bool:
    return [message["role"] for message in document.messages or []] == ["user", "assistant"]


def _system_message(document: Document, seed: int) -> list[Message]:
    if _draw(seed, "system", document.key) >= WITH_SYSTEM:
        return []
    choices = SYSTEM_MESSAGES + SYSTEM_MESSAGES_BY_CATEGORY.get(document.category, ())
    return [{"role": "system", "content": choices[int(_draw(seed, "which", document.key) * len(choices))]}]


def _tools_as_system(messages: Sequence[Message]) -> list[Message]:
    """Moves the descriptions of tools, with which GPTeacher's tool-use questions begin, into a system message.

    "toolformer: enabled", "toolformer access: NAME, ...", then for each NAME a description and a line "NAME(argument)".
    """
    first, *answers = messages
    lines = first["content"].split("\n")
    if first["role"] != "user" or len(lines) < 2 or not lines[1].startswith("toolformer access: "):
        return list(messages)
    end = 2
    for name in lines[1].removeprefix("toolformer access: ").split(", "):
        while end < len(lines) and not re.fullmatch(rf"{re.escape(name)}\([\w, ]*\)", lines[end]):
            end += 1
        end += 1
    if end >= len(lines):
        return list(messages)
    system = {"role": "system", "content": TOOLS_MESSAGE + "\n".join(lines[2:end])}
    return [system, {"role": "user", "content": "\n".join(lines[end:])}, *answers]


def _draw(seed: int, *what: str) -> float:
    """A number in [0, 1) that depends on the arguments only."""
    return int(digest("/".join([str(seed), *what])), 16) / 2**64
