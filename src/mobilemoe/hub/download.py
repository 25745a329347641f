"""Downloads a model of the Hub: only the files that a model here consists of, with progress, continued after a break.

The Hub's library does the asking, the small files and the folder's layout. The large files go through its `http_get`
into a file of our own beside the place where the library looks for them, because the library itself begins a file
anew with every process; what arrived is compared with the file's SHA-256.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from huggingface_hub import HfApi, constants, get_token, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers, tqdm  # type: ignore[attr-defined]

from mobilemoe import progress
from mobilemoe.errors import ModelNotFoundError
from mobilemoe.files import sha256_file
from mobilemoe.hub.cached import needed

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UnreachableError(ModelNotFoundError):
    """The Hub cannot be asked, or the connection to it broke."""


def download(hub_id: str, revision: str | None, *, weights: bool) -> Path:
    """The folder of the model's newest files; what is there already is not fetched again.

    Without `weights` only the small files are fetched. ModelNotFoundError says in one sentence what is wrong, and is
    an UnreachableError where trying again may help.
    """
    try:
        with _quiet_library(), progress.shown():
            listed = HfApi().model_info(hub_id, revision=revision, files_metadata=True).siblings or []
            names = needed([file.rfilename for file in listed], weights=weights)
            if "config.json" not in names or (weights and not any(name.endswith(".safetensors") for name in names)):
                raise ModelNotFoundError(
                    f"{hub_id} on the Hub is no model for this program: it lacks "
                    f"{'config.json' if 'config.json' not in names else 'model.safetensors'}"
                )
            _fetch_large(hub_id, revision, [file for file in listed if file.rfilename in names])
            return Path(
                snapshot_download(hub_id, revision=revision, allow_patterns=names, tqdm_class=_Hidden, max_workers=4)
            )
    except ModelNotFoundError:
        raise
    except Exception as fault:  # the Hub's client raises many kinds, those of its HTTP library among them
        raise _explained(fault, hub_id, revision) from None


def _fetch_large(hub_id: str, revision: str | None, files: Sequence[RepoSibling]) -> None:
    """Fetches what Git LFS holds of the files into the places where the library will find them."""
    folder = _blobs(hub_id)
    total = sum(file.size or 0 for file in files)
    large = [file for file in files if file.lfs is not None and not (folder / file.lfs.sha256).exists()]
    done = total - sum(file.size or 0 for file in large)
    _check_room(hub_id, folder, sum((file.size or 0) - _part_bytes(folder, file) for file in large))
    for file in large:
        assert file.lfs is not None

        def told(bytes_of_file: int, before: int = done) -> None:
            progress.tell((before + bytes_of_file) // 10**6, total // 10**6, f"{hub_id} (MB)")

        url = hf_hub_url(hub_id, file.rfilename, revision=revision)
        _fetch(url, folder / file.lfs.sha256, file.lfs.size, told)
        done += file.lfs.size


def _fetch(url: str, blob: Path, size: int, told: Callable[[int], None]) -> None:
    """Fetches a file whose name is its SHA-256; what an earlier attempt has got of it is kept."""
    part = _part(blob)
    with _kept_if_begun(part), open(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # waits for another process that fetches the same
        if blob.exists():
            return
        had = handle.seek(0, os.SEEK_END)
        if had > size:
            had = handle.truncate(0) + handle.seek(0)
        http_get(
            url,
            handle,
            resume_size=had,
            headers=build_hf_headers(),
            expected_size=size,
            tqdm_class=partial(_Told, told),  # type: ignore[arg-type]
        )
        handle.flush()
        os.fsync(handle.fileno())
        if sha256_file(part) != blob.name:
            part.unlink()
            raise UnreachableError(f"{url} arrived damaged, by its SHA-256: try again")
        os.replace(part, blob)


@contextmanager
def _kept_if_begun(part: Path) -> Iterator[None]:
    """Makes the folder for `part`, and takes both away again if nothing came."""
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if part.exists() and not part.stat().st_size:
            part.unlink()
            with suppress(OSError):  # there is something else in them
                part.parent.rmdir()
                part.parent.parent.rmdir()
        raise


def _blobs(hub_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model") / "blobs"


def _part(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.part")


def _part_bytes(folder: Path, file: RepoSibling) -> int:
    part = _part(folder / file.lfs.sha256) if file.lfs is not None else folder
    return part.stat().st_size if part.is_file() else 0


def _check_room(hub_id: str, folder: Path, wanted: int) -> None:
    place = next(path for path in folder.parents if path.exists())
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise ModelNotFoundError(
            f"{hub_id} needs {wanted / 1e6:,.0f} MB more, but {place} has only {free / 1e6:,.0f} MB free: make room, "
            "or name another place in HF_HOME"
        )


class _Told:
    """What `http_get` takes for a progress bar."""

    def __init__(self, told: Callable[[int], None], *, initial: int = 0, **_: Any) -> None:
        self._told, self._done = told, initial

    def __enter__(self) -> Self:
        self._told(self._done)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self._done += count
        self._told(self._done)


class _Hidden(tqdm):
    """No bar, for the small files."""

    def __init__(self, *values: Any, **options: Any) -> None:
        super().__init__(*values, **options | {"disable": True})  # type: ignore[no-untyped-call]


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Without the library's warnings: what matters of them is said in one sentence at the end."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _explained(fault: Exception, hub_id: str, revision: str | None) -> ModelNotFoundError:
    hub = constants.ENDPOINT
    if isinstance(fault, HFValidationError):
        return ModelNotFoundError(f"there is no folder {hub_id}, and no model of the Hub can have that name")
    page, login = f"{hub}/{hub_id}", "put a token into HF_TOKEN or run `hf auth login`"
    if isinstance(fault, GatedRepoError):
        if get_token() is None:
            return ModelNotFoundError(f"{hub_id} is gated: log in at {page}, accept its licence there, then {login}")
        return ModelNotFoundError(
            f"{hub_id} is gated, and the account of your token (HF_TOKEN or `hf auth login`) has no access: accept its "
            f"licence at {page} with that account, and if access is granted by hand wait for it"
        )
    if isinstance(fault, RevisionNotFoundError):
        return ModelNotFoundError(f"{hub_id} has no revision {revision or 'main'}: see {page}/tree/main")
    if isinstance(fault, RepositoryNotFoundError):
        return ModelNotFoundError(
            f"there is no folder {hub_id}, and the Hub has no model of that name; if it is private, {login}"
        )
    if isinstance(fault, HfHubHTTPError):
        status = fault.response.status_code
        if status == 401:
            return ModelNotFoundError(
                f"the Hub does not accept your token (HF_TOKEN or `hf auth login`): make a new one at "
                f"{hub}/settings/tokens"
            )
        if status == 403:
            return ModelNotFoundError(
                f"the Hub does not give {hub_id} to your token: it needs the right to read gated repositories, set at "
                f"{hub}/settings/tokens"
            )
        return UnreachableError(f"the Hub ({hub}) answered {status} for {hub_id}: try again later")
    if isinstance(fault, OfflineModeIsEnabled):
        return UnreachableError(
            f"{hub_id} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: run `mobilemoe pull {hub_id}` "
            "once without it"
        )
    if isinstance(fault, OSError) and fault.errno in _FULL:
        return ModelNotFoundError(
            f"the disk of {constants.HF_HUB_CACHE} is full: make room and start the same command again, which "
            "continues, or name another place in HF_HOME"
        )
    if isinstance(fault, PermissionError | NotADirectoryError | FileExistsError) or (
        isinstance(fault, OSError) and fault.errno == errno.EROFS
    ):
        return ModelNotFoundError(
            f"{fault.filename or constants.HF_HUB_CACHE} cannot be written ({fault.strerror}): change its rights, or "
            "name another place in HF_HOME"
        )
    lines = str(fault).strip().splitlines() or [type(fault).__name__]
    begun = any(_blobs(hub_id).glob("*.part"))
    kept = "; what has arrived is kept, and the same command continues from there" if begun else ""
    return UnreachableError(
        f"there is no folder {hub_id}, and the Hub ({hub}) does not give {hub_id}: {lines[0]}{kept}"
    )
