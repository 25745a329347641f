"""Prepared shards: the pieces of one source as token ids, in files that are read faster than a GPU trains.

A folder holds `prepared.json` and, for each source, `NAME-00000.npz`, ... An .npz is a compressed NumPy archive of
    ids   uint16 or uint32 [tokens]: all pieces one after another, control ids included;
    ends  int64 [pieces]: where each piece ends in `ids`;
    chat  bool [pieces]: whether a piece is a conversation;
    runs  int64 [runs, 2]: where in `ids` runs of an assistant's own tokens begin and end.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mobilemoe.data.folder import find_shards
from mobilemoe.data.retry import read_patiently
from mobilemoe.data.sources import Document, Encoded, shards_fingerprint
from mobilemoe.errors import DataError
from mobilemoe.files import atomic_file, read_json

INDEX_NAME = "prepared.json"
FORMAT_VERSION = 2  # version 1 kept the pieces in the order of their text
MAX_SHARD_BYTES = 2**30  # of one array, unpacked
_CHARS_PER_BYTE = 3  # of text in a byte of packed ids


class TokenShard(NamedTuple):
    """The arrays of one file, as the module's docstring says."""

    ids: NDArray[Any]
    ends: NDArray[np.int64]
    chat: NDArray[np.bool_]
    runs: NDArray[np.int64]


class TokenSource:
    """The .npz files below `root` that match one of the patterns: the train split of one source, prepared.

    Raises DataError if there are none or they lack their index.
    """

    side_by_side = 1  # since prepared pieces are shuffled already
    most_rounds = 1

    def __init__(self, root: Path, patterns: str | Sequence[str]) -> None:
        self._root = root
        self.shards = find_shards(root, patterns)
        self.sizes = [_CHARS_PER_BYTE * (root / shard).stat().st_size for shard in self.shards]
        self.fingerprint = shards_fingerprint(root, self.shards)
        indexes = [read_json(folder / INDEX_NAME, DataError) for folder in {(root / s).parent for s in self.shards}]
        if any(index.get("version") != FORMAT_VERSION for index in indexes):
            raise DataError(f"{root / self.shards[0]} was prepared by another version: run `mobilemoe data prepare`")
        self._tokenizers = {index.get("tokenizer") for index in indexes}

    def check_tokenizer(self, fingerprint: str) -> None:
        """Raises DataError unless the shards were prepared with the tokenizer and template of this fingerprint."""
        if self._tokenizers != {fingerprint}:
            raise DataError(
                f"{self._root / self.shards[0]} was prepared with another tokenizer or chat template: "
                "run `mobilemoe data prepare` with this recipe's"
            )

    def documents(self, shard: int) -> Iterator[Document]:
        """The pieces of one file, in stored order. Raises DataError naming the file if it is damaged."""
        name = self.shards[shard]
        for _, (ids, ends, chat, runs) in read_patiently(lambda: enumerate([read_shard(self._root / name)], 1), name):
            edges = np.zeros(len(ids) + 1, dtype=np.int8)
            edges[runs[:, 0]] += 1
            edges[runs[:, 1]] -= 1
            taught = np.cumsum(edges[:-1], dtype=np.int8).astype(bool)
            start = 0
            for end, is_chat in zip(ends.tolist(), chat.tolist(), strict=True):
                encoded = Encoded(ids[start:end], taught[start:end] if is_chat else None)
                yield Document(None, None, source=name, key=name, encoded=encoded)
                start = end


def ids_type(vocab_size: int) -> type[np.uint16 | np.uint32]:
    """The narrowest type that a shard may hold ids of this vocabulary in."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def write_shard(path: Path, pieces: Sequence[Encoded], vocab_size: int) -> None:
    """Writes `pieces` (at least one) in one step."""
    ids = np.concatenate([piece.ids_N for piece in pieces]).astype(ids_type(vocab_size))
    ends = np.cumsum([len(piece.ids_N) for piece in pieces])
    chat = np.array([piece.taught_N is not None for piece in pieces])
    taught = np.concatenate([_none_taught(piece) if piece.taught_N is None else piece.taught_N for piece in pieces])
    runs = np.flatnonzero(np.diff(np.concatenate([[False], taught, [False]]).astype(np.int8))).reshape(-1, 2)
    with atomic_file(path) as handle:
        np.savez_compressed(handle, ids=ids, ends=ends.astype(np.int64), chat=chat, runs=runs.astype(np.int64))


def read_shard(path: Path) -> TokenShard:
    """Reads and checks one file. Raises DataError naming it if it is damaged, OSError if it cannot be read at all."""
    try:
        with zipfile.ZipFile(path) as archive:
            shard = TokenShard(*(_read_array(archive, f"{field}.npy") for field in TokenShard._fields))
        ids, ends, chat, runs = shard
        if ids.dtype not in (np.uint16, np.uint32) or [a.dtype for a in shard[1:]] != [np.int64, np.bool_, np.int64]:
            raise ValueError("its arrays are of other types")
        if ids.ndim != 1 or ends.ndim != 1 or chat.shape != ends.shape or runs.ndim != 2 or runs.shape[1] != 2:
            raise ValueError("its arrays do not fit together")
        bounds = np.concatenate([[0], ends])
        if (np.diff(bounds) <= 0).any() or bounds[-1] != len(ids):
            raise ValueError("its pieces do not fill it")
        places = np.concatenate([[-1], runs.ravel(), [len(ids) + 1]])
        if (np.diff(places) <= 0).any():
            raise ValueError("its runs are out of order")
    except (ValueError, KeyError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as fault:
        raise DataError(f"{path} is damaged ({fault}): run `mobilemoe data prepare` again") from None
    return shard


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    if archive.getinfo(name).file_size > MAX_SHARD_BYTES:
        raise ValueError(f"{name} is larger than {MAX_SHARD_BYTES} bytes")
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
    return array


def _none_taught(piece: Encoded) -> NDArray[np.bool_]:
    return np.zeros(len(piece.ids_N), dtype=bool)
