"""Shard files as rows: JSONL and plain text (each also .gz and .zst) and parquet, with damage told in one sentence."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from mobilemoe.errors import DataError, MissingExtraError

MAX_DOCUMENT_BYTES = 256 * 2**20  # a damaged or hostile file must not fill the memory with one endless line
ZSTD_INPUT_BYTES = 4096  # at a time: zstd can unpack each byte to 32 kB, so 128 MiB at the very worst
_KINDS: dict[str, Literal["jsonl", "parquet", "text"]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
    ".py": "text",
}


def shard_kind(name: str) -> Literal["jsonl", "parquet", "text"]:
    """What a file holds, by its name without .gz or .zst. Raises DataError for a name that says nothing."""
    plain = name.removesuffix(".gz").removesuffix(".zst")
    kind = _KINDS.get(Path(plain).suffix)
    if kind is None or (kind == "parquet" and plain != name):
        raise DataError(f"{name} is of no known kind: use .jsonl or .txt (also with .gz or .zst), .md, .rst, .parquet")
    return kind


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Pairs (line number from 1, JSON value) of each line that is not blank."""
    with _open_plain(path) as handle:
        number = 0
        while line := handle.readline(MAX_DOCUMENT_BYTES + 1):
            number += 1
            if len(line) > MAX_DOCUMENT_BYTES:
                raise DataError(f"{path}, line {number}, is longer than {MAX_DOCUMENT_BYTES} bytes: split the document")
            if line.isspace():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as fault:
                raise DataError(f"{path}, line {number}, is not valid JSON: {fault}") from None
            yield number, value


def read_text(path: Path) -> str:
    """The whole file as one text (UTF-8)."""
    with _open_plain(path) as handle:
        data = handle.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DataError(f"{path} is longer than {MAX_DOCUMENT_BYTES} bytes: split it into several files")
    try:
        return data.decode()
    except UnicodeDecodeError as fault:
        raise DataError(f"{path} is not UTF-8 text at byte {fault.start}: convert it first") from None


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Pairs (row number from 1, row) with those of `columns` that the file has."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "train") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=256, columns=present):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as fault:
        raise DataError(f"{path} is not a whole parquet file (after row {number}): {fault}") from None


@contextmanager
def _open_plain(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed by its suffix; damage met while reading becomes a DataError.

    An OSError of the machine passes through, since it may be gone at the next attempt.
    """
    faults: tuple[type[Exception], ...] = (gzip.BadGzipFile, EOFError, zlib.error)
    try:
        if path.suffix == ".zst":
            try:
                import zstandard
            except ImportError:
                raise MissingExtraError(f"reading {path.name}", "train") from None
            faults = (*faults, zstandard.ZstdError)
            with path.open("rb") as packed, io.BufferedReader(_ZstdStream(packed), 2**20) as handle:
                yield handle
        elif path.suffix == ".gz":
            with gzip.open(path) as handle:
                yield handle  # type: ignore[misc]  # GzipFile is a BinaryIO in all but name
        else:
            with path.open("rb") as handle:
                yield handle
    except faults as fault:
        raise DataError(f"{path} cannot be read to its end, fetch or write it again: {fault}") from None


class _ZstdStream(io.RawIOBase):
    """Decompresses one frame after another; unlike zstandard's own reader it notices a frame that was cut off."""

    def __init__(self, packed: BinaryIO) -> None:
        import zstandard

        self._packed = packed
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._frame_is_empty = True
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._frame.eof:
                rest = self._frame.unused_data
                self._frame = self._new_frame()
                self._frame_is_empty = True
            else:
                rest = b""
            data = rest or self._packed.read(ZSTD_INPUT_BYTES)
            if not data:
                if self._frame_is_empty:
                    return 0
                raise EOFError("the last zstd frame is cut off")
            self._frame_is_empty = False
            self._ready = memoryview(self._frame.decompress(data))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
