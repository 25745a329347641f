"""Random models of a preset's shape, kept in the user's cache: anyone can measure without the gated weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from mobilemoe import accounting
from mobilemoe.checkpoint import write_random
from mobilemoe.config import GroupAxis
from mobilemoe.errors import CheckpointError, MobileMoEError
from mobilemoe.files import cache_folder
from mobilemoe.presets import preset

_SEED = 1


def random_model(name: str, group_axis: GroupAxis, on_write: Callable[[str], None]) -> Path:
    """The folder of a random INT4 model shaped as the preset `name`; written the first time, which `on_write` hears.

    UsageError if there is no such preset, MobileMoEError if the disk has no room for it and its engine file.
    """
    config = preset(name)
    shape = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
    folder = cache_folder().parent / "random" / f"{name}-{group_axis}-{shape}"
    if folder.is_dir():
        return folder
    size = accounting.int4_file_bytes(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = 2 * size, shutil.disk_usage(folder.parent).free
    if free < needed:
        raise MobileMoEError(
            f"a random {name} and its engine file need {needed / 1e9:.1f} GB, "
            f"but in {folder.parent} only {free / 1e9:.1f} GB are free"
        )
    on_write(f"writing a random {name}, {size / 1e9:.2f} GB and as much again for its engine file, into {folder}")
    try:
        write_random(folder, config, seed=_SEED, format="int4", group_axis=group_axis)
    except CheckpointError:
        if not folder.is_dir():  # else another process was faster
            raise
    return folder
