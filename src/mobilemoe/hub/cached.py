"""Models of the Hub that are on this machine, in the folder that all of the Hub's programs share.

The library's layout: models--ORG--NAME/ has blobs/HASH, snapshots/COMMIT/FILE (links to blobs) and refs/REVISION.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_cached_repo_tree, try_to_load_from_cache
from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError

from mobilemoe import user_cache

_SMALL = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|added_tokens\.json|chat_template\.(jinja|json)|additional_chat_templates/[^/]+\.jinja|README\.md|LICEN[CS]E[^/]*"
)
_WHOLE, _DRAFT = "model.safetensors", "draft.safetensors"
_SHARDED = re.compile(r"model\.safetensors\.index\.json|model-\d+-of-\d+\.safetensors")


def needed(names: Collection[str], *, weights: bool) -> list[str]:
    """Of the files of a repository those that a model here consists of, each weight once."""
    chosen = [name for name in names if _SMALL.fullmatch(name)]
    if "tokenizer.json" not in names:
        chosen += [name for name in names if name == "tokenizer.model"]
    if weights:
        chosen += [_WHOLE] if _WHOLE in names else [name for name in names if _SHARDED.fullmatch(name)]
        chosen += [name for name in names if name == _DRAFT]
    return chosen


def find_cached(hub_id: str, revision: str | None, *, weights: bool) -> Path | None:
    """The folder of a model that was downloaded completely, marked as used now; None if it was not."""
    try:
        tree = get_cached_repo_tree(hub_id, revision=revision)
    except (CachedRepoTreeNotFoundError, HFValidationError):
        return None
    folder = _snapshot(hub_id, revision)
    names = needed([file.path for file in tree], weights=weights)
    if folder is None or not all((folder / name).is_file() for name in names):
        return None
    _note_use(folder)
    return folder


def find_unlisted(hub_id: str, revision: str | None, *, weights: bool) -> Path | None:
    """The folder of a model that another program downloaded, which keeps no list of files: if it looks complete."""
    folder = _snapshot(hub_id, revision)
    if folder is None or not looks_complete(folder, weights=weights):
        return None
    _note_use(folder)
    return folder


def looks_complete(folder: Path, *, weights: bool) -> bool:
    """Whether the folder has a config, a tokenizer and, with `weights`, every shard that the names of some promise."""
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    if not (has_tokenizer and (folder / "config.json").is_file()):
        return False
    shards = sorted(path.name for path in folder.glob("model-*.safetensors") if _SHARDED.fullmatch(path.name))
    are_all = bool(shards) and len(shards) == int(shards[0].removesuffix(".safetensors").rsplit("-", 1)[1])
    return not weights or (folder / _WHOLE).is_file() or are_all


def _snapshot(hub_id: str, revision: str | None) -> Path | None:
    config = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _note_use(folder: Path) -> None:
    """The time of the last use is that of the last access to config.json, which many file systems do not keep."""
    with suppress(OSError):  # the cache may be read-only
        status = os.stat(folder / "config.json")
        os.utime(folder / "config.json", ns=(time.time_ns(), status.st_mtime_ns))


@dataclass(frozen=True)
class CachedModel:
    """A model of the Hub on this machine, in all its revisions.

    `revisions` are commits with the names of branches and tags that meant them when they were downloaded; `bytes` are
    those of the downloaded files, `engine_bytes` those of the engine files made from them; `used` is the time of the
    last use in seconds since 1970; `complete` is false where a download has not ended.
    """

    name: str
    folder: Path
    revisions: dict[str, list[str]]
    bytes: int
    engine_bytes: int
    used: float
    complete: bool

    def remove(self) -> int:
        """Removes the model with its engine files; the bytes that this freed. OSError if that fails."""
        for entry in _engine_files(self.folder):
            entry.remove()
        shutil.rmtree(self.folder)
        shutil.rmtree(self.folder.parent / ".locks" / self.folder.name, ignore_errors=True)
        return self.bytes + self.engine_bytes


def cached_models() -> list[CachedModel]:
    """What the Hub's folder holds of models, the most recently used first."""
    place = Path(constants.HF_HUB_CACHE)
    folders = [path for path in place.glob("models--*--*") if path.is_dir()]
    models = [model for model in map(_read, folders) if model.bytes]
    return sorted(models, key=lambda model: (-model.used, model.name))


def _read(folder: Path) -> CachedModel:
    name = "/".join(folder.name.split("--", 2)[1:])
    revisions: dict[str, list[str]] = {path.name: [] for path in sorted(folder.glob("snapshots/*"))}
    for ref in sorted(path for path in folder.glob("refs/**/*") if path.is_file()):
        with suppress(OSError, UnicodeDecodeError):
            revisions.setdefault(ref.read_text(), []).append(str(ref.relative_to(folder / "refs")))
    files = [path.lstat() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    used = max((path.stat().st_atime for path in folder.glob("snapshots/*/config.json")), default=0.0)
    return CachedModel(
        name=name,
        folder=folder,
        revisions=revisions,
        bytes=sum(file.st_size for file in files if stat.S_ISREG(file.st_mode)),
        engine_bytes=sum(entry.bytes + _size(user_cache.about(entry.path)) for entry in _engine_files(folder)),
        used=used or folder.stat().st_mtime,
        complete=bool(revisions) and all(_is_complete(name, folder, commit) for commit in revisions),
    )


def _is_complete(name: str, folder: Path, commit: str) -> bool:
    snapshot = folder / "snapshots" / commit
    try:
        names = needed([file.path for file in get_cached_repo_tree(name, revision=commit)], weights=True)
    except CachedRepoTreeNotFoundError:
        return looks_complete(snapshot, weights=True)
    return all((snapshot / each).is_file() for each in names)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _engine_files(folder: Path) -> list[user_cache.Entry]:
    try:
        entries = user_cache.entries()
    except OSError:
        return []
    return [entry for entry in entries if entry.kind == "engine" and Path(entry.model).is_relative_to(folder)]
