"""Files that are either whole or absent: atomic writes, hashes, JSON with one-line errors."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mobilemoe.errors import MobileMoEError

MAX_JSON_BYTES = 64 * 2**20  # a tokenizer.json of 256k words is about 35 MB; nothing honest is larger


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path | str) -> Iterator[IO[bytes]]:
    """Yields a binary file beside `path`; on success it is fsynced and renamed to `path`, else removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w+b") as handle:
            yield handle
            handle.flush()
            os.fchmod(handle.fileno(), 0o644)  # mkstemp makes files only their owner can read
            os.fsync(handle.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Replaces the file at `path` by `data` (text as UTF-8) in one step."""
    with atomic_file(path) as handle:
        handle.write(data.encode() if isinstance(data, str) else data)


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def refuse_existing(path: Path, error: type[MobileMoEError]) -> None:
    """Raises `error` if `path` exists already: a result is never overwritten in silence."""
    if path.exists():
        raise error(f"{path} exists already: choose another name or remove it first")


@contextmanager
def atomic_folder(path: Path | str, error: type[MobileMoEError] = MobileMoEError) -> Iterator[Path]:
    """Yields an empty folder beside `path` that becomes `path` in one rename when the block succeeds.

    Raises `error` if `path` exists already.
    """
    path = Path(path)
    refuse_existing(path, error)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield part
        os.chmod(part, 0o755)
        for folder, _, names in os.walk(part):
            for name in names:
                with open(os.path.join(folder, name), "rb") as handle:
                    os.fsync(handle.fileno())
            _fsync_folder(Path(folder))
        os.rename(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _fsync_folder(path.parent)


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_json(path: Path | str, error: type[MobileMoEError] = MobileMoEError) -> dict[str, Any]:
    """Reads a JSON object; raises `error` with one sentence if it is missing, oversized or not an object."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise error(f"{path} is {size} bytes, more than the {MAX_JSON_BYTES} that a JSON file may have here")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except (ValueError, RecursionError) as fault:
        raise error(f"{path} is not valid JSON: {fault}") from None
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror}") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value
