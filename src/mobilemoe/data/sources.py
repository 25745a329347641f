"""Where documents come from: local files (JSONL, parquet, plain text) or a Hugging Face dataset, behind one interface.

A source is a fixed list of shards; `documents(shard)` streams one of them in file order. Shuffling is done elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mobilemoe.chat import Message
from mobilemoe.data.folder import find_shards
from mobilemoe.data.messages import clean_messages
from mobilemoe.data.retry import read_patiently
from mobilemoe.data.shards import read_json_lines, read_parquet, read_text, shard_kind
from mobilemoe.errors import DataError, MissingExtraError, TokenizerError
from mobilemoe.hub import data_commit, split_revision

Split = Literal["train", "heldout"]
HOLDOUT = 0.01  # at 1% even the smallest domain of the project's text (about 1,000 sections) has held-out sources
SPLITS: tuple[Split, ...] = ("train", "heldout")
_PACKED = 4  # characters in a byte of a packed file
_HUB_SHARD_SIZE = 2**30  # a guess: the Hub does not say
_SHOWN = 80  # characters of the names in a sentence


class Encoded(NamedTuple):
    """N token ids (of any integer type), control ids included.

    `taught_N` says of a conversation which of them the assistant writes; it is None for a text.
    """

    ids_N: NDArray[Any]
    taught_N: NDArray[np.bool_] | None


class Document(NamedTuple):
    """A text or a conversation, whole or (after cutting) one piece of a text.

    Exactly one of `text`, `messages` and (in a prepared shard) `encoded` is set. `source` is the document's own origin
    (a book, a file), `key` says where it was read (`file:line`), `ends` is false for a piece that is followed by more
    of the same document. `unlearnt` are the indices of the assistant's messages that are shown but not learnt.
    """

    text: str | None
    messages: list[Message] | None
    source: str
    key: str
    license: str = ""
    category: str = ""
    ends: bool = True
    encoded: Encoded | None = None
    unlearnt: tuple[int, ...] = ()


class Source(Protocol):
    """A list of shards that can be read one by one, any number of times, always with the same result.

    `sizes` are about the characters in each shard. For a good mix `side_by_side` shards
    are to be read at once, and each up to `most_rounds` times an epoch.
    """

    side_by_side: int
    most_rounds: int

    @property
    def shards(self) -> Sequence[str]: ...

    @property
    def sizes(self) -> Sequence[int]: ...

    @property
    def fingerprint(self) -> str:
        """Changes when the shards do, since a saved position is only valid in the same shards."""

    def documents(self, shard: int) -> Iterator[Document]: ...


class LocalSource:
    """The files below `root` that match one of the glob patterns, in sorted order, one shard each.

    Raises DataError if a pattern matches nothing or a file is of an unknown kind.
    """

    side_by_side = 16
    most_rounds = 8

    def __init__(self, root: Path, patterns: str | Sequence[str], text_field: str = "text") -> None:
        self._root = root
        self._text_field = text_field
        self.shards = find_shards(root, patterns)
        for shard in self.shards:
            shard_kind(shard)  # so that an unknown kind is reported now and not hours into a run
        self.sizes = [_characters_in(root / shard) for shard in self.shards]
        self.fingerprint = shards_fingerprint(root, self.shards, text_field)

    def documents(self, shard: int) -> Iterator[Document]:
        """The documents of one file, in file order. Raises DataError that names the file and line."""
        name = self.shards[shard]
        path = self._root / name
        kind = shard_kind(name)
        if kind == "text":
            for _, text in read_patiently(lambda: enumerate([read_text(path)], 1), str(path)):
                if text.strip():
                    yield Document(text, None, source=name, key=name)
            return
        wanted = (self._text_field, "messages", "source", "license", "category")

        def read() -> Iterator[tuple[int, Any]]:
            return read_json_lines(path) if kind == "jsonl" else read_parquet(path, wanted)

        unit = "line" if kind == "jsonl" else "row"
        for number, row in read_patiently(read, str(path)):
            document = document_of_row(row, f"{path}, {unit} {number},", f"{name}:{number}", self._text_field)
            if document is not None:
                yield document


class HubSource:
    """A Hugging Face dataset, streamed; its shards are those that `datasets` reports.

    `hub` may end in a revision, "org/name@v1". What that stands for now is read, and the commit is in the fingerprint.
    Raises MissingExtraError without `datasets`, DataError if the dataset cannot be opened or read.
    """

    side_by_side = 4  # few, since a resumed run downloads them again
    most_rounds = 1  # since each round would download everything

    def __init__(
        self,
        hub: str,
        subset: str | None = None,
        split: str = "train",
        data_files: str | list[str] | None = None,
        text_field: str = "text",
    ) -> None:
        try:
            import datasets
        except ModuleNotFoundError:
            raise MissingExtraError(f"reading {hub} from the Hugging Face Hub", "hf") from None
        name, revision = split_revision(hub)
        self._text_field = text_field
        try:
            self.commit = data_commit(name, revision)
            self._dataset: Any = datasets.load_dataset(
                name, subset, split=split, data_files=data_files, revision=self.commit, streaming=True
            )
            count = int(self._dataset.num_shards)
        except Exception as fault:  # `datasets` passes on whatever its builders, fsspec and the network raise
            raise DataError(f"the dataset {hub} ({split}) cannot be opened: {_first_line(fault)}") from fault
        self.shards = [f"{name}/{subset or 'default'}/{split}-{index:05d}" for index in range(count)]
        self.sizes = [_HUB_SHARD_SIZE] * count
        self.fingerprint = digest(json.dumps([name, self.commit, subset, split, data_files, text_field, count]))

    def documents(self, shard: int) -> Iterator[Document]:
        """The documents of one shard, in stored order. Raises DataError that names the dataset and row."""
        name = self.shards[shard]

        def read() -> Iterator[tuple[int, Any]]:
            return enumerate(self._dataset.shard(num_shards=len(self.shards), index=shard), 1)

        for number, row in read_patiently(read, name, passing=Exception):  # any fault, as above
            document = document_of_row(row, f"{name}, row {number},", f"{name}:{number}", self._text_field)
            if document is not None:
                yield document


def is_held_out(document: Document, fraction: float) -> bool:
    """Whether a document belongs to the held-out split: a stable hash below `fraction`.

    Texts are hashed by `source`, so that all pieces of a book are in the same split. Conversations are hashed by every
    message that is not the assistant's, so that the same question with another answer is in the same split.
    """
    if document.encoded is not None:
        return False  # prepared shards hold the train split only
    key = document.source
    if document.messages is not None:
        asked = [[m["role"], m["content"]] for m in document.messages if m["role"] != "assistant"]
        key = json.dumps(asked, ensure_ascii=False)
    return int(digest(key), 16) < fraction * 2**64


def shards_fingerprint(root: Path, shards: Sequence[str], *more: str) -> str:
    """A hash of the files' names and sizes, and of `more`."""
    return digest("\n".join([*more, *(f"{shard}\0{(root / shard).stat().st_size}" for shard in shards)]))


def _characters_in(path: Path) -> int:
    return path.stat().st_size * (_PACKED if path.suffix in (".gz", ".zst", ".parquet") else 1)


def digest(text: str) -> str:
    """A hash of 64 bits as 16 hex digits, the same in every process and on every machine."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def document_of_row(row: Any, place: str, key: str, text_field: str = "text") -> Document | None:
    """The document of one row of a file, or nothing if its text is blank (empty modules are common and teach nothing).

    Messages may be missing, null or an empty list, and then it is the text that counts. Of a message `name` is left
    out; `weight` 0 says that the assistant's message is shown and not learnt. Raises DataError that begins with
    `place`.
    """
    if not isinstance(row, dict):
        raise DataError(f"{place} holds a JSON {type(row).__name__}, not an object with {text_field!r} or 'messages'")
    messages, text = None, None
    unlearnt: tuple[int, ...] = ()
    if row.get("messages") not in (None, []):
        try:
            messages, unlearnt = clean_messages(row["messages"])
        except TokenizerError as fault:
            raise DataError(f"{place} has no usable conversation: {fault}") from None
    else:
        text = row.get(text_field)
    source = row.get("source") or key
    if not isinstance(source, str):
        raise DataError(f"{place} has a 'source' that is not a string")
    if messages is None and not isinstance(text, str):
        others = ", ".join(sorted(map(str, row.keys() - {text_field, "messages"})))[:_SHOWN]
        found = f" (it has {others}: a recipe's text_field may name one); write" if others else ": write"
        raise DataError(
            f"{place} has neither a string {text_field!r} nor 'messages'{found} conversations as 'messages' "
            "of role and content"
        )
    license_, category = str(row.get("license") or ""), str(row.get("category") or "")
    try:
        for string in (source, license_, category, text or "", *(said for m in messages or () for said in m.values())):
            string.encode()
    except UnicodeEncodeError:
        raise DataError(f"{place} holds half a surrogate pair, which is no character: encode the file again") from None
    if messages is None and (not text or text.isspace()):
        return None
    return Document(text, messages, source, key, license_, category, unlearnt=unlearnt)


def messages_as_stored(document: Document) -> list[dict[str, Any]]:
    """A conversation as `document_of_row` reads it."""
    messages = [dict[str, Any](message) for message in document.messages or []]
    for place in document.unlearnt:
        messages[place]["weight"] = 0
    return messages


def _first_line(fault: Exception) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0]
