"""From the name of a model to a folder on this machine: bundled, local, or from the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from mobilemoe.errors import ModelNotFoundError

ASSETS = Path(__file__).parent.parent / "assets"
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_model(name: str | Path, *, weights: bool = True) -> Path:
    """The folder of `name`: a folder, the name of a bundled model ("nano") or a Hub id ("org/model", downloaded once).

    A Hub id may end in a revision, "org/model@v1": a commit, a tag or a branch. A model that has been downloaded is
    found without asking the Hub again; `pull` looks for a newer one. Without `weights` only the small files of a Hub
    model are fetched, for whom the tokenizer is enough.

    Raises ModelNotFoundError if there is no such model, or none can be had.
    """
    if (found := _find_here(name)) is not None:
        return found
    hub_id, revision = _hub_id(name)
    from mobilemoe.hub.cached import find_cached, find_unlisted
    from mobilemoe.hub.download import UnreachableError, download

    if (folder := find_cached(hub_id, revision, weights=weights)) is not None:
        return folder
    try:
        return download(hub_id, revision, weights=weights)
    except UnreachableError:
        if (folder := find_unlisted(hub_id, revision, weights=weights)) is not None:
            return folder
        raise


def pull(name: str) -> tuple[Path, bool]:
    """The folder of a model, and whether it was fetched: of a Hub id the newest files of its revision.

    Raises as `find_model`.
    """
    if (found := _find_here(name)) is not None:
        return found, False
    hub_id, revision = _hub_id(name)
    from mobilemoe.hub.cached import find_cached
    from mobilemoe.hub.download import download

    before = find_cached(hub_id, revision, weights=True)
    folder = download(hub_id, revision, weights=True)
    return folder, folder != before


def split_revision(name: str) -> tuple[str, str | None]:
    """A Hub id without and with its revision; any other name is given back whole."""
    found = _HUB_ID.fullmatch(name)
    return (found[1], found[2]) if found else (name, None)


def with_commit(name: str) -> str:
    """A model's name that always means the same files: a Hub id gets the commit that `find_model` takes for it now.

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


def bundled_models() -> list[Path]:
    """The folders of the models that come with the package."""
    return sorted(path for path in ASSETS.iterdir() if (path / "config.json").is_file())


def _find_here(name: str | Path) -> Path | None:
    """The folder of a model that is no Hub's; ModelNotFoundError for what can be no model's name."""
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
        if folder.suffix == ".gguf":
            raise ModelNotFoundError(f"{name} is a file of llama.cpp: `mobilemoe convert` makes a model's folder of it")
        raise ModelNotFoundError(f"{name} is a file: give the folder that holds config.json and the weights")
    bundled = ASSETS / str(name)
    return bundled if re.fullmatch(r"[\w-]+", str(name)) and bundled.is_dir() else None


def _hub_id(name: str | Path) -> tuple[str, str | None]:
    """A Hub id and its revision; ModelNotFoundError for any other name."""
    if not _HUB_ID.fullmatch(str(name)):
        from mobilemoe.presets import PRESETS

        if name in PRESETS:
            raise ModelNotFoundError(f"{name} is a shape without weights: it is for `info` and `bench --random`")
        names = ", ".join(path.name for path in bundled_models())
        raise ModelNotFoundError(
            f"there is no folder {name}; bundled models are {names}, Hub models are ORG/NAME or ORG/NAME@REVISION"
        )
    return split_revision(str(name))
