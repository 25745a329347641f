"""Writes files that are either complete or absent, and reads files with one-sentence errors."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from mobilemoe.errors import MobileMoEError, UsageError

_SURROGATE = re.compile(r"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")  # a surrogate as JSON escapes it, alone or in a pair
MAX_JSON_PARTS = 2**21  # lists and objects in one file; the merges of 256k words are a million
LFS_START = b"version https://git-lfs.github.com/spec/"  # a Git LFS pointer is shorter than this
IS_LFS_POINTER = "is a Git LFS pointer, not the file itself: fetch that with `git lfs pull`, or download it"

_BEGINS = {"page": b"<!doctype html>", "PNG": b"\x89PNG\r\n"}
MAX_JSON_BYTES = 64 * 2**20  # a tokenizer.json with 256k tokens is about 35 MB; no valid file is larger


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _claim(path: Path) -> int | None:
    """A descriptor whose lock marks `path` as in use by this process; None if another uses it, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def clear_abandoned(folder: Path, prefix: str, suffix: str) -> None:
    """Removes what killed processes have left in `folder`: temporary files of this package that nobody has locked."""
    for name in os.listdir(folder):
        path = folder / name
        if not (name.startswith(prefix) and name.endswith(suffix)) or path.is_symlink():
            continue
        if path.stat().st_uid == os.geteuid() and (held := _claim(path)) is not None:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            os.close(held)


@contextmanager
def _part(path: Path, *, folder: bool) -> Iterator[Path]:
    """A new file or folder beside `path`, as the umask allows, locked as long as this process works on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{path.name}.", ".part"
    with suppress(OSError):  # another user's, or gone by now
        clear_abandoned(path.parent, prefix, suffix)
    held = None
    while held is None:  # another process may take a new part for an abandoned one before it is locked
        part = path.parent / f"{prefix}{secrets.token_hex(6)}{suffix}"
        if folder:
            part.mkdir()
        else:
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        held = _claim(part)
        if held is None and part.exists():
            break  # a file system without locks
    try:
        yield part
    finally:
        if held is not None:
            os.close(held)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the file or folder in OSErrors of writes, which name nothing or the temporary file."""
    try:
        yield
    except OSError as fault:
        if fault.errno is None:  # numpy's tofile, for one, gives a text alone
            part = "only a part of it could be written: the disk may be full"
            raise OSError(errno.EIO, part if " requested and " in str(fault) else str(fault), str(path)) from fault
        if fault.filename is None or f"/.{path.name}." in f"/{fault.filename}":
            fault.filename, fault.filename2 = str(path), None
        raise


def _refuse_special(path: Path) -> None:
    """Raises OSError for a device, a pipe or a socket: as root, a rename would replace /dev/null for every program."""
    with suppress(FileNotFoundError, NotADirectoryError):
        kind = os.stat(path).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)) or path.parent == Path("/dev"):
            raise FileExistsError(errno.EEXIST, "this is no regular file, so it is not replaced", str(path))


def check_writable(path: Path | str) -> None:
    """Raises, before long work, the OSError that `atomic_file(path)` would for a place that takes no file."""
    path = Path(path)
    _refuse_special(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with _named(path), _part(path, folder=False) as part:
        part.unlink()


def check_replaceable(path: Path | str, kind: str, is_one: Callable[[Path], bool] | None = None) -> None:
    """`check_writable`, and UsageError for a file there that is not empty and not of the `kind` that is to be written.

    is_one: tells it; None for a "page" or "PNG", which are told by how they begin.
    """
    check_writable(path)
    path = Path(path)
    if not path.exists() or path.stat().st_size == 0:
        return
    if not (_begins_as(path, kind) if is_one is None else is_one(path)):
        raise UsageError(f"{path} exists already and is no {kind}: choose another name or remove it first")


def _begins_as(path: Path, kind: str) -> bool:
    with open(path, "rb") as handle:
        return handle.read(len(_BEGINS[kind])) == _BEGINS[kind]


@contextmanager
def atomic_file(path: Path | str) -> Iterator[IO[bytes]]:
    """Yields a binary file beside `path`; on success it is fsynced and renamed to `path`, else removed.

    OSError, before anything is written, if `path` is a device, a pipe or a socket.
    """
    path = Path(path)
    _refuse_special(path)
    with _named(path), _part(path, folder=False) as part:
        try:
            with part.open("w+b") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
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
    """Raises `error` if `path` exists already: a result is never overwritten silently."""
    if path.exists():
        raise error(f"{path} exists already: choose another name or remove it first")


def numbered(path: Path, may_take: Callable[[Path], bool]) -> Path:
    """The first of NAME, NAME-2, NAME-3 and so on that `may_take` allows, so that other results are not replaced."""
    places = (path if number == 1 else path.with_stem(f"{path.stem}-{number}") for number in count(1))
    return next(place for place in places if may_take(place))


@contextmanager
def atomic_folder(path: Path | str, error: type[MobileMoEError] = MobileMoEError) -> Iterator[Path]:
    """Yields an empty folder beside `path` that becomes `path` in one rename when the block succeeds.

    Raises `error` if `path` exists already.
    """
    path = Path(path)
    refuse_existing(path, error)
    with _named(path), _part(path, folder=True) as part:
        try:
            yield part
            for folder, _, names in os.walk(part):
                for name in names:
                    with open(os.path.join(folder, name), "rb") as handle:
                        os.fsync(handle.fileno())
                _fsync_folder(Path(folder))
            try:
                os.rename(part, path)
            except OSError:
                refuse_existing(path, error)  # another process was faster
                raise
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    _fsync_folder(path.parent)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Makes `folder` where there is none, and removes it again if the block fails with nothing in it."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


@contextmanager
def hold_folder(folder: Path, error: type[MobileMoEError]) -> Iterator[None]:
    """Locks `folder` against other processes; `error` if one has it. No effect on a file system without locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise error(f"another process is at work in {folder}: wait for it, or use another folder") from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for this process alone, below the system's temporary one; gone afterwards, also after a kill: the next
    call clears what no living process owns."""
    root, prefix = Path(tempfile.gettempdir()), "mobilemoe-scratch-"
    with suppress(OSError):
        clear_abandoned(root, prefix, "")
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as name:
        held = _claim(Path(name))
        try:
            yield Path(name)
        finally:
            if held is not None:
                os.close(held)


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def open_regular(path: Path | str, error: type[MobileMoEError]) -> IO[bytes]:
    """Opens a regular file; `error` for a pipe or a device, without waiting for it; else OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise error(f"{path} is no regular file")


def read_bytes(path: Path | str, error: type[MobileMoEError], limit: int | None = None) -> bytes:
    """The content of a regular file of at most `limit` bytes (64 MiB); `error` with one sentence for anything else.

    A pipe or a device is refused without waiting for it.
    """
    limit = MAX_JSON_BYTES if limit is None else limit
    try:
        with open_regular(path, error) as handle:
            size = os.fstat(handle.fileno()).st_size
            # Not the limit itself, because read() allocates what it is asked for.
            data = handle.read(size + 1) if size <= limit else b""
            if len(data) > size:  # for a file that grows, or whose size is unknown
                data += handle.read(max(0, limit + 1 - len(data)))
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except ValueError as fault:  # a NUL in the name
        raise error(f"{str(path)!r} cannot be a file's name: {fault}") from None
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror}") from None
    if size > limit or len(data) > limit:
        raise error(f"{path} is {max(size, len(data))} bytes, more than the {limit} that it may have here")
    if data.startswith(LFS_START):
        raise error(f"{path} {IS_LFS_POINTER}")
    return data


def decode_text(data: bytes, where: str, error: type[MobileMoEError]) -> str:
    """Decodes UTF-8 and drops a byte-order mark; `error` names `where` and the first invalid byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(f"{where} is not UTF-8 text at byte {fault.start}: convert it first") from None


def read_text(path: Path | str, error: type[MobileMoEError], limit: int | None = None) -> str:
    """The text of a file from a person or another program; `error` with one sentence if it is not text."""
    return decode_text(read_bytes(path, error, limit), str(path), error)


def parse_json(data: bytes, where: str, error: type[MobileMoEError]) -> Any:
    """Parses one JSON value, with or without a byte-order mark; `error` names `where` and the fault.

    A lone surrogate is refused, since no file, tokenizer or terminal accepts such a text.
    """
    text = decode_text(data, where, error)
    if len(data) > MAX_JSON_PARTS and text.count("[") + text.count("{") > MAX_JSON_PARTS:
        raise error(f"{where} holds more than {MAX_JSON_PARTS} lists and objects")
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise error(f"{where} holds half a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    except (ValueError, RecursionError) as fault:
        raise error(f"{where} is not valid JSON: {fault}") from None
    return value


def read_toml(path: Path | str, error: type[MobileMoEError]) -> dict[str, Any]:
    """The tables of a TOML file, with or without a byte-order mark; `error` with one sentence if it holds none."""
    text = read_text(path, error)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as fault:
        raise error(f"{path} is not valid TOML: {fault}") from None


def read_json(
    path: Path | str, error: type[MobileMoEError] = MobileMoEError, limit: int | None = None
) -> dict[str, Any]:
    """Reads a JSON object; raises `error` with one sentence if it is missing, oversized or not an object."""
    value = parse_json(read_bytes(path, error, limit), str(path), error)
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value
