"""Reads files as rows: JSONL and plain text (each also .gz and .zst), and parquet. Damage is one clear DataError."""

from __future__ import annotations

import gzip
import io
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import IO, Any, Literal

from mobilemoe.errors import DataError, MissingExtraError
from mobilemoe.files import IS_LFS_POINTER, LFS_START, decode_text, open_regular, parse_json

MAX_DOCUMENT_BYTES = 256 * 2**20  # a damaged or hostile file must not fill the memory
MAX_LINE_BYTES = 64 * 2**20  # of JSON, whose values can take twenty times as much
ZSTD_INPUT_BYTES = 4096  # at a time: zstd may expand each byte to 32 kB, so this is 128 MiB at worst
_PARQUET_ROWS = 256  # decoded at a time
_PACKED = {  # how files begin whose names say nothing of it
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"BZh9": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet",
}
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
    plain = plain_name(name)
    kind = _KINDS.get(Path(plain).suffix.lower())
    if kind is None or (kind == "parquet" and plain != name):
        raise DataError(f"{name} is of no known kind: use .jsonl or .txt (also with .gz or .zst), .md, .rst, .parquet")
    return kind


def plain_name(name: str) -> str:
    """A file's name without .gz or .zst."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in (".gz", ".zst") else name


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Pairs (line number from 1, JSON value) of each line that is not blank.

    Byte-order marks are passed over. Raises DataError naming file and line for what is no JSON in UTF-8 or holds half a
    surrogate pair, OSError if the machine fails.
    """
    with _open_plain(path) as handle:
        number = 0
        while line := handle.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number == 1:
                _refuse_wide(line, path)
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number}, is longer than {MAX_LINE_BYTES} bytes: split the document")
            line = line.removeprefix(BOM_UTF8)
            if line.strip():
                yield number, parse_json(line, f"{path}, line {number},", DataError)


def read_text(path: Path) -> str:
    """The whole file as one text (UTF-8, without its byte-order mark)."""
    with _open_plain(path) as handle:
        data = handle.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DataError(f"{path} is longer than {MAX_DOCUMENT_BYTES} bytes: split it into several files")
    _refuse_wide(data, path)
    return decode_text(data, str(path), DataError)


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Pairs (row number from 1, row) with those of `columns` that the file has; no other column is looked at.

    Raises DataError naming file and row for damage and for values that are not what their type says.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise MissingExtraError(f"reading {path.name}", "train") from None
    number = 0
    try:
        with (
            _open_whole(path) as handle,
            pyarrow.parquet.ParquetFile(handle, buffer_size=2**20, page_checksum_verification=True) as file,
        ):
            names = file.schema_arrow.names
            present = [name for name in columns if name in names]
            if twice := [name for name in present if names.count(name) > 1]:
                raise DataError(f"{path} has several columns called {twice[0]!r}: rename them")
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=present):
                for row in _rows(batch, path, number):
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, ValueError, OverflowError, TypeError) as fault:
        raise _damage(path, number, fault) from None
    except OSError as fault:
        if fault.errno is not None:  # the machine's
            raise
        raise _damage(path, number, fault) from None


def _damage(path: Path, number: int, fault: Exception) -> DataError:
    """What pyarrow found wrong after row `number`; it raises the same kinds of exception for many faults."""
    said = _one_line(fault)
    if "crypt" in said.lower():
        return DataError(f"{path} is encrypted: write it without ({said})")
    if "utf8" in said.lower():
        return DataError(f"{path} holds text that is not UTF-8 (after row {number}): {said}")
    return DataError(f"{path} is damaged (after row {number}): {said}")


def _rows(batch: Any, path: Path, before: int) -> list[dict[str, Any]]:
    """The rows of a record batch, the `before` + 1st of the file first."""
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except Exception:  # of the packages that pyarrow makes Python's values with, such as those of time zones
        for number, name in product(range(batch.num_rows), batch.schema.names):
            place = f"{path}, row {before + number + 1}"
            try:
                batch.column(name).slice(number, 1).to_pylist()
            except UnicodeDecodeError as fault:
                raise DataError(f"{place}, holds text in {name!r} that is not UTF-8: {fault.reason}") from None
            except Exception as fault:
                raise DataError(f"{place}, holds in {name!r} what cannot be read: {_one_line(fault)}") from None
        raise


def _one_line(fault: Exception) -> str:
    return " ".join(str(fault).split())


def _refuse_wide(data: bytes, path: Path) -> None:
    """Raises DataError if a file's first bytes are those of UTF-16 or UTF-32."""
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or (b"\0" in data[:2] and data[:4].strip(b"\0")):
        raise DataError(f"{path} is text in UTF-16 or UTF-32: save it as UTF-8")


@contextmanager
def _open_plain(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a regular file, decompressed by its suffix; damage met while reading becomes a DataError.

    An OSError of the machine passes through, since it may be gone at the next attempt.
    """
    faults: tuple[type[Exception], ...] = (gzip.BadGzipFile, EOFError, zlib.error)
    packing = path.suffix.lower()
    try:
        if packing == ".zst":
            try:
                import zstandard
            except ModuleNotFoundError:
                raise MissingExtraError(f"reading {path.name}", "train") from None
            faults = (*faults, zstandard.ZstdError)
            with _open_whole(path) as packed, io.BufferedReader(_ZstdStream(packed), 2**20) as handle:
                _refuse_packed(handle, path, "twice ")
                yield handle
        elif packing == ".gz":
            with _open_whole(path) as packed, gzip.open(packed) as handle:
                _refuse_packed(handle, path, "twice ")
                yield handle  # type: ignore[misc]  # GzipFile is such a file in all but name
        else:
            with _open_whole(path) as handle:
                _refuse_packed(handle, path)
                yield handle
    except faults as fault:
        raise DataError(f"{path} cannot be read to its end, fetch or write it again: {fault}") from None


def _open_whole(path: Path) -> IO[bytes]:
    """Opens a regular file, but not a Git LFS pointer, a few lines that replace a file kept elsewhere."""
    handle = open_regular(path, DataError)
    if handle.peek(len(LFS_START)).startswith(LFS_START):  # type: ignore[attr-defined]  # a BufferedReader
        handle.close()
        raise DataError(f"{path} {IS_LFS_POINTER}")
    return handle


def _refuse_packed(handle: Any, path: Path, again: str = "") -> None:
    """Raises DataError if what should be text begins as a compressed file does."""
    start = handle.peek(8)
    for beginning, what in _PACKED.items():
        if start.startswith(beginning):
            raise DataError(f"{path} is {again}{what}: unpack it, or name it .gz or .zst after what it is")


class _ZstdStream(io.RawIOBase):
    """Decompresses one frame after another; unlike zstandard's own reader it notices a frame that was cut off."""

    def __init__(self, packed: IO[bytes]) -> None:
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
