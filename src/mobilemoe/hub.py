"""From the name of a model to a folder on this machine: bundled, local, or from the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from mobilemoe.errors import MissingExtraError, ModelNotFoundError

ASSETS = Path(__file__).parent / "assets"
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_model(name: str | Path, *, weights: bool = True) -> Path:
    """The folder of `name`: a folder, the name of a bundled model ("nano") or a Hub id ("org/model", downloaded once).

    A Hub id may end in a revision, "org/model@v1": a commit, a tag or a branch. Without `weights` only the small files
    of a Hub model are fetched, for whom the tokenizer is enough.

    Raises ModelNotFoundError if there is no such model, MissingExtraError if the Hub's package is not installed.
    """
    if not str(name).strip():
        raise ModelNotFoundError("the model's name is empty")
    folder = Path(name)
    try:
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except OSError as fault:  # a name too long for the file system, or a folder that may not be entered
        raise ModelNotFoundError(f"{name} cannot be looked up: {fault.strerror}") from None
    if is_folder:
        return folder
    if is_file:
        raise ModelNotFoundError(f"{name} is a file: give the folder that holds config.json and the weights")
    bundled = ASSETS / str(name)
    if re.fullmatch(r"[\w-]+", str(name)) and bundled.is_dir():
        return bundled
    hub_id, revision = split_revision(str(name))
    if _HUB_ID.fullmatch(hub_id):
        return _download(hub_id, revision, weights)
    names = ", ".join(sorted(path.name for path in ASSETS.iterdir()))
    raise ModelNotFoundError(
        f"there is no folder {name}; bundled models are {names}, Hub models are ORG/NAME or ORG/NAME@REVISION"
    )


def split_revision(name: str) -> tuple[str, str | None]:
    """A Hub id without and with its revision; any other name is given back whole."""
    found = _HUB_ID.fullmatch(name)
    return (found[1], found[2]) if found else (name, None)


def with_commit(name: str) -> str:
    """A model's name that always means the same files: a Hub id gets the commit that it points to now.

    Raises as `find_model`, which it calls.
    """
    hub_id, revision = split_revision(name)
    folder = find_model(name, weights=False)
    is_of_hub = _HUB_ID.fullmatch(name) and _COMMIT.fullmatch(folder.name) and not Path(name).exists()
    return f"{hub_id}@{folder.name}" if is_of_hub and revision != folder.name else name


def data_commit(hub_id: str, revision: str | None) -> str | None:
    """The commit of a data set of the Hub; None for another name, such as that of a kind of file ("json").

    Raises whatever the Hub's client does.
    """
    if not _HUB_ID.fullmatch(hub_id) or Path(hub_id).exists():
        return None
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    return HfApi().dataset_info(hub_id, revision=revision).sha


def _download(hub_id: str, revision: str | None, weights: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise MissingExtraError(f"downloading {hub_id}", "hf") from None
    try:
        patterns = ["*.json", "*.jinja", "tokenizer.model", *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except Exception as fault:  # the Hub's client raises many kinds: no network, no such model, gated, disk full
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise ModelNotFoundError(f"there is no folder {hub_id}, and the Hub does not give it: {reason}") from None
