"""Random models in the shape of a preset, kept in the user's cache: speed can be measured without the gated weights."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from mobilemoe import accounting
from mobilemoe.checkpoint import write_random
from mobilemoe.config import GroupAxis
from mobilemoe.errors import CheckpointError, MobileMoEError
from mobilemoe.files import scratch_folder
from mobilemoe.presets import preset
from mobilemoe.user_cache import prune, usable_cache

_SEED = 1


def random_model(name: str, group_axis: GroupAxis, on_write: Callable[[str], None]) -> Path:
    """The folder of a random INT4 model shaped as the preset `name`; written the first time, which `on_write` is told.

    Without a usable cache it exists as long as this process. Raises UsageError if there is no such preset,
    MobileMoEError if the disk is too full for it and its engine file.
    """
    config = preset(name)
    shape = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
    try:
        folder = usable_cache("random") / f"{name}-{group_axis}-{shape}"
        if not (folder.is_dir() or os.access(folder.parent, os.W_OK)):
            raise OSError(f"{folder.parent} can only be read")
    except OSError as fault:
        on_write(f"the random {name} cannot be kept ({fault}): it is written anew at every start")
        stack = ExitStack()
        folder = stack.enter_context(scratch_folder()) / name
        atexit.register(stack.close)
    if folder.is_dir():
        with suppress(OSError):
            os.utime(folder)  # the cache removes the least recently used first
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
        if not folder.is_dir():  # otherwise another process was faster
            raise
    prune(folder)
    return folder
