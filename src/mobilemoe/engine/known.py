"""What large files hold, without reading them at each start: what was read once is remembered in the user's cache.

A file is taken for the one that was read if its size, times, inode and device are the same and so are samples of its
bytes. Nothing sets the time of the last change (ctime) but a change. So this can be wrong only for files of the same
size that agree in all samples, and only where a file system keeps no such time (FAT, some network mounts), where the
clock was set back, or where a program writes through a shared mapping that the system has not yet noted. What changed
within the last two seconds is not remembered.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mobilemoe.cache import is_private, usable_cache
from mobilemoe.checkpoint.folder import CONFIG, INDEX
from mobilemoe.engine.native import native, our_errors
from mobilemoe.errors import CheckpointError
from mobilemoe.files import read_json, write_json

_SAMPLES, _SAMPLE = 64, 4096  # places in a file, bytes at each
_SETTLED = 2.0  # seconds after which a further change surely gets another time
_REMEMBERED = 1000  # signatures


def fingerprint(folder: Path, *, anew: bool = False) -> bytes:
    """Of the config and the weights in `folder`, of 32 bytes; `anew` reads them in any case.

    CheckpointError if they cannot be read.
    """
    files = [
        path for path in (folder / CONFIG, folder / INDEX, *sorted(folder.glob("*.safetensors"))) if path.is_file()
    ]
    signature, settled = _signature(files)
    known = None if anew else _recall(signature)
    if known is not None:
        return bytes.fromhex(known)
    with our_errors():
        found = native.checkpoint_fingerprint(str(folder))
    if settled and stamp(folder) == signature:
        _remember(signature, found.hex())
    return found


def stamp(folder: Path) -> str:
    """Changes when one of the model's files does. CheckpointError if they cannot be read."""
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
    """What stands for the files' contents, and whether a change that came now would be seen in it."""
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
    """Offsets of samples from the beginning to the end; of a small file all of it."""
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
    """Another process may do so at the same time: what is lost then is read again."""
    with suppress(OSError):
        path = usable_cache("engine") / "known.json"
        known = {}
        with suppress(CheckpointError):
            known = read_json(path, CheckpointError) if is_private(path) else {}
        known[signature] = found
        write_json(path, dict(list(known.items())[-_REMEMBERED:]))
        path.chmod(0o600)
