"""Finds the data files of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape
from pathlib import Path

from mobilemoe.data.shards import plain_name
from mobilemoe.errors import DataError

_BACKUPS = ".bak .backup .old .orig .save .sav .rej .tmp .temp .part .partial .crdownload .download .swp .swo .swn"
_SUMS = (
    ".md5 .md5sum .sha1 .sha1sum .sha224 .sha256 .sha256sum .sha384 .sha512 .sha512sum .b2 .b3 .crc .crc32 .checksum"
)
_MARKERS = {"thumbs.db", "desktop.ini", "_success", "_metadata", "_common_metadata"}
_SYSTEMS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "__pycache__"}  # folders
_ASIDE = frozenset(f"{_BACKUPS} {_SUMS} .lock .pid .idx .index .offsets .sig .asc .log".split())


def find_shards(root: Path, patterns: str | Sequence[str]) -> list[str]:
    """The files below `root` that match one of the glob patterns, each once, sorted, relative to `root`.

    Wildcards match no hidden files (unless the pattern has a name that begins with a dot), no backups, nothing that is
    about another file (`a.jsonl.sha256`) and nothing in the folders that systems keep for themselves; of a file and the
    same packed (`a.jsonl`, `a.jsonl.gz`) the first is taken, and so it is of names that lead to one file. Raises
    DataError if a pattern leaves the folder, or neither it nor the same with .gz or .zst matches any.
    """
    names = [patterns] if isinstance(patterns, str) else patterns
    found: set[str] = set()
    missing: dict[str, str] = {}  # sentences by pattern
    for pattern in names:
        matches = _matches(root, pattern)
        files = {name for name in matches if (root / name).is_file()}
        kept = {name for name in files if escape(name) == pattern or not _is_aside(name, pattern)}
        found |= kept
        if not kept:
            others = f", but a hidden file or a backup does, {min(files)}" if files else ""
            others = f", but a folder, pipe or device does, {min(matches)}" if matches and not files else others
            missing[pattern] = f"no file matches {pattern!r} in {root}{others}: check data.path and the pattern"
    met = {plain_name(pattern) for pattern in names if pattern not in missing}
    for pattern, sentence in missing.items():
        if plain_name(pattern) not in met:
            raise DataError(sentence)
    unpacked: dict[str, str] = {}
    met_files: set[tuple[int, int]] = set()
    for name in sorted(found):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"the name of the file {name!r} in {root} is not UTF-8: rename it") from None
        status = (root / name).stat()
        if status.st_ino and (status.st_dev, status.st_ino) in met_files:
            continue
        met_files.add((status.st_dev, status.st_ino))
        unpacked.setdefault(plain_name(name), name)
    return sorted(unpacked.values())


def _matches(root: Path, pattern: str) -> set[str]:
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise DataError(f"the pattern {pattern!r} leaves the data folder: write it relative to {root}")
    try:
        return {path.relative_to(root).as_posix() for path in root.glob(pattern)}
    except (ValueError, NotImplementedError) as fault:
        raise DataError(f"the pattern {pattern!r} cannot be used: {fault}") from None


def _is_aside(name: str, pattern: str) -> bool:
    """Whether a file is hidden (and the pattern asks for nothing hidden), a backup or about another file."""
    last = Path(name).name
    return (
        (_is_hidden(name) and not _is_hidden(pattern))
        or bool(_SYSTEMS.intersection(Path(name).parts) - {*Path(pattern).parts})
        or last.startswith("~$")
        or last.endswith(("~", "#"))
        or last.lower() in _MARKERS
        or Path(last).suffix.lower() in _ASIDE
    )


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in Path(path).parts)
