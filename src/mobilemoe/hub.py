"""From the name of a model to a folder on this machine: bundled, local, or from the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from mobilemoe.errors import MissingExtraError, ModelNotFoundError

ASSETS = Path(__file__).parent / "assets"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def find_model(name: str | Path, *, weights: bool = True) -> Path:
    """The folder of `name`: a folder, the name of a bundled model ("nano") or a Hub id ("org/model", downloaded once).

    Without `weights` only the small files of a Hub model are fetched, for whom the tokenizer is enough.

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
    if _HUB_ID.fullmatch(str(name)):
        return _download(str(name), weights)
    names = ", ".join(sorted(path.name for path in ASSETS.iterdir()))
    raise ModelNotFoundError(f"there is no folder {name}; bundled models are {names}, Hub models are ORG/NAME")


def _download(hub_id: str, weights: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError(f"downloading {hub_id}", "hf") from None
    try:
        patterns = ["*.json", "*.jinja", "tokenizer.model", *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as fault:  # the Hub's client raises many kinds: no network, no such model, gated, disk full
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise ModelNotFoundError(f"there is no folder {hub_id}, and the Hub does not give it: {reason}") from None
