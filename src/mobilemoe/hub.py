"""From the name of a model to a folder on this machine: bundled, local, or from the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from mobilemoe.errors import MissingExtraError, ModelNotFoundError

ASSETS = Path(__file__).parent / "assets"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_model(name: str | Path) -> Path:
    """The folder of `name`: a folder, the name of a bundled model ("nano") or a Hub id ("org/model", downloaded once).

    Raises ModelNotFoundError if there is no such model, MissingExtraError if the Hub's package is not installed.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelNotFoundError(f"{name} is a file: give the folder that holds config.json and the weights")
    bundled = ASSETS / str(name)
    if re.fullmatch(r"[\w-]+", str(name)) and bundled.is_dir():
        return bundled
    if _HUB_ID.fullmatch(str(name)):
        return _download(str(name))
    names = ", ".join(sorted(path.name for path in ASSETS.iterdir()))
    raise ModelNotFoundError(f"there is no folder {name}; bundled models are {names}, Hub models are ORG/NAME")


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError(f"downloading {hub_id}", "hf") from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]))
    except Exception as fault:  # the Hub's client raises many kinds: no network, no such model, gated, disk full
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise ModelNotFoundError(f"{hub_id} cannot be had from the Hub: {reason}") from None
