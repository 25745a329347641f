"""The user's cache: where it is, whether only its owner can change it, what it holds, and what is removed when full.

engine/    engine files, with a .json of the same name beside each: what it was made from; its time is the last use
random/    random models of `bench PRESET --random`
evaluate/  finished requests of evaluations, so that a killed one resumes; removed only by hand
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mobilemoe.errors import CheckpointError, UsageError
from mobilemoe.files import clear_abandoned, read_json

KINDS = ("engine", "random", "evaluate")
LIMIT_VARIABLE = "MOBILEMOE_CACHE_BYTES"
DEFAULT_LIMIT = 20_000_000_000  # bytes of engine files and random models
_PRUNED = ("engine", "random")
_UNMAPPED = 65534  # the owner that a user namespace shows for files from outside
_TEMPORARY = (".", ".part")  # prefix and suffix of the names of files that are being written


def cache_folder() -> Path:
    """Where engine files are kept: under $XDG_CACHE_HOME, or ~/.cache. OSError if there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "mobilemoe" / "engine"
    except RuntimeError as fault:
        raise OSError(str(fault)) from None


def usable_cache(kind: str) -> Path:
    """The folder `kind` of the cache, made if it is missing, for this user alone.

    OSError, whose text says why, if there is no home, if the folder cannot be entered or made, or if another user could
    put a file there, because such files are not trusted.
    """
    root = cache_folder().parent
    folder = root / kind
    try:
        _refuse_others(root, ())  # before anything is made
        root.parent.mkdir(parents=True, exist_ok=True)
        for path in (root, folder):
            path.mkdir(mode=0o700, exist_ok=True)
        _refuse_others(root, (root, folder))
        with os.scandir(folder):
            pass
    except OSError as fault:
        raise OSError(f"{fault.filename}: {fault.strerror}" if fault.filename else str(fault)) from None
    return folder


def is_private(path: Path) -> bool:
    """Whether `path` is a file or a folder, no link, that nobody but this user and root can change."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    is_of_kind = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return is_of_kind and status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _refuse_others(root: Path, own: Collection[Path]) -> None:
    """Raises OSError if someone else owns a folder of `own`, or one above `root`, or may replace files in it.

    Above the root, folders like /tmp are accepted, in which users cannot change each other's files.
    """
    above = {*root.parents, *Path(os.path.realpath(root)).parents}
    for path in (*above, *own):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        is_outside = path in above and status.st_uid == _UNMAPPED and _is_in_user_namespace()
        if status.st_uid not in (0, os.geteuid()) and not is_outside:
            raise OSError(f"{path} belongs to another user (uid {status.st_uid})")
        if path in above and status.st_mode & stat.S_ISVTX:
            continue
        of_group = status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
        if of_group or status.st_mode & stat.S_IWOTH:
            raise OSError(f"{path} can be written by other users: chmod go-w {path}")


def _is_in_user_namespace() -> bool:
    """Whether owners of the folders above look alike, as in a sandbox."""
    try:
        return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
    except OSError:
        return False


def _is_own_group(number: int) -> bool:
    """Whether this is the private group that many systems create for each user."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return number == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


@dataclass(frozen=True)
class Entry:
    """One thing in the cache: `used` is when, in seconds since 1970; `model` is what it was made for."""

    kind: str
    path: Path
    bytes: int
    used: float
    model: str

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.path.name}"

    def remove(self) -> None:
        """Raises OSError if that fails. A process that uses the file can keep using it."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)
            about(self.path).unlink(missing_ok=True)


def about(engine_file: Path) -> Path:
    """The file that says what `engine_file` was made from, and by its time when it was last used."""
    return engine_file.with_suffix(".json")


def entries() -> list[Entry]:
    """Everything in the cache, the most recently used first. OSError as for `usable_cache`."""
    found = [entry for kind in KINDS for entry in _entries(kind)]
    return sorted(found, key=lambda entry: (-entry.used, entry.name))


def clear_temporary() -> None:
    """Removes what processes that were killed have left in the cache."""
    for kind in KINDS:
        with suppress(OSError):
            clear_abandoned(usable_cache(kind), *_TEMPORARY)


def limit() -> int:
    """How many bytes engine files and random models may take together. UsageError if the environment says nonsense."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return DEFAULT_LIMIT
    try:
        number = float(text)
        if 0 <= number < 2**63:
            return int(number)
    except ValueError:
        pass
    raise UsageError(f"{LIMIT_VARIABLE} is {text!r}, but must be a number of bytes, such as 5e9")


def prune(keep: Path) -> None:
    """Removes what was used longest ago, `keep` never, until the rest is within the limit."""
    left = limit()
    with suppress(OSError):  # of files that another process has removed meanwhile, or that cannot be removed
        for entry in entries():
            if entry.kind not in _PRUNED:
                continue
            left -= entry.bytes
            if left < 0 and entry.path != keep:
                entry.remove()


def _entries(kind: str) -> Iterator[Entry]:
    for path in sorted(usable_cache(kind).iterdir()):
        if path.name.startswith(".") or (kind == "engine" and path.suffix != ".mobilemoe"):
            continue
        with suppress(FileNotFoundError):
            if kind == "engine":
                said = about(path)
                used = (said if said.exists() else path).stat().st_mtime
                yield Entry(kind, path, path.stat().st_size, used, _said(said, "model"))
            elif path.is_dir():
                files = [file.stat() for file in path.rglob("*") if file.is_file()]
                used = max((file.st_mtime for file in files), default=0.0)
                model = path.name if kind == "random" else _said(path / "settings.json", "model")
                used = max(used, path.stat().st_mtime)
                yield Entry(kind, path, sum(file.st_size for file in files), used, model)


def _said(path: Path, key: str) -> str:
    try:
        return str(read_json(path, CheckpointError).get(key, ""))
    except CheckpointError:
        return ""
