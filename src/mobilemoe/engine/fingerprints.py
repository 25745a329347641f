"""Fingerprints of large files that need not be read at each start: the user's cache remembers what was read once.

A file counts as unchanged if its size, times, inode and device are the same and so are samples of its bytes. Only a
change of a file sets its time of last change (ctime). So this can be wrong only for files of the same size that agree
in all samples, and only where a file system keeps no such time (FAT, some network mounts), where the clock was set
back, or where a program writes through a shared mapping that the system has not yet noted. Files that changed within
the last two seconds are not remembered.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mobilemoe.checkpoint.folder import CONFIG, INDEX
from mobilemoe.engine.native import native, our_errors
from mobilemoe.errors import CheckpointError
from mobilemoe.files import read_json, write_json
from mobilemoe.user_cache import is_private, usable_cache

_SAMPLES, _SAMPLE = 64, 4096  # the number of samples of a file, and the bytes of each
_SETTLED = 2.0  # seconds after a change; a later change certainly gets another time
_REMEMBERED = 1000  # the most signatures that are remembered
_FINGERPRINT = re.compile("[0-9a-f]{64}")


def fingerprint(folder: Path, *, anew: bool = False) -> bytes:
    """The 32 bytes that identify the config and the weights in `folder`; `anew` reads all of them again.

    CheckpointError if they cannot be read.
    """
    signature, settled = _signature(_files(folder))
    known = None if anew else _recall(signature)
    if known is not None and _FINGERPRINT.fullmatch(known):
        return bytes.fromhex(known)
    with our_errors():
        found = native.checkpoint_fingerprint(str(folder))
    if settled and stamp(folder) == signature:
        _remember(signature, found.hex())
    return found


def stamp(folder: Path) -> str:
    """A text that changes when one of the model's files does. CheckpointError if they cannot be read."""
    return _signature(_files(folder))[0]


def check_whole(path: Path) -> None:
    """CheckpointError unless every byte of the engine file is the one that was written."""
    signature, settled = _signature([path])
    if _recall(signature) is not None:
        return
    with our_errors():
        native.verify(str(path))
    if settled and _signature([path])[0] == signature:
        _remember(signature, "")


def _files(folder: Path) -> list[Path]:
    names = (folder / CONFIG, folder / INDEX, *sorted(folder.glob("*.safetensors")))
    return [path for path in names if path.is_file()]


def _signature(files: Iterable[Path]) -> tuple[str, bool]:
    """A signature of the files, and whether any later change is certain to change it."""
    digest, newest = hashlib.sha256(f"{native.ENGINE_VERSION}\n".encode()), 0.0
    try:
        for path in files:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                place = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
                digest.update(f"{path.name} {place}\n".encode(errors="surrogateescape"))
                for offset in _samples(status.st_size):
                    digest.update(os.pread(file.fileno(), _SAMPLE, offset))
                newest = max(newest, status.st_ctime)
    except OSError as fault:
        raise CheckpointError(f"{path} cannot be read: {fault.strerror}") from None
    return digest.hexdigest(), newest < time.time() - _SETTLED


def _samples(size: int) -> Iterable[int]:
    """Offsets of the samples, from the beginning to the end; together they cover a small file."""
    if size <= _SAMPLES * _SAMPLE:
        return range(0, size, _SAMPLE)
    return [(size - _SAMPLE) * at // (_SAMPLES - 1) for at in range(_SAMPLES)]


def _recall(signature: str) -> str | None:
    with suppress(OSError, CheckpointError):
        path = usable_cache("engine") / "known.json"
        if is_private(path) and isinstance(found := read_json(path, CheckpointError).get(signature), str):
            return found
    return None


def _remember(signature: str, found: str) -> None:
    """Notes a signature. What is lost when two processes do so at the same time will be read again."""
    with suppress(OSError):
        path = usable_cache("engine") / "known.json"
        known = {}
        with suppress(CheckpointError):
            known = read_json(path, CheckpointError) if is_private(path) else {}
        known[signature] = found
        write_json(path, dict(list(known.items())[-_REMEMBERED:]))
        path.chmod(0o600)
