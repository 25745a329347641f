"""Where engine files come from: a checkpoint is rewritten once, kept in the user's cache and mapped from there.

The file's name is a fingerprint of the checkpoint: another version of a model gets another file. It is written beside
its place and renamed, so that processes may do this at the same time: the last one wins with the same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mobilemoe.checkpoint import Checkpoint, save_checkpoint
from mobilemoe.checkpoint.companions import copy_companions
from mobilemoe.checkpoint.container import MAX_HEADER_BYTES
from mobilemoe.checkpoint.folder import CONFIG, INDEX, WEIGHTS
from mobilemoe.config import GroupAxis, ModelConfig
from mobilemoe.engine.native import native, our_errors
from mobilemoe.errors import CheckpointError, UsageError
from mobilemoe.files import atomic_folder, cache_folder

ENGINE_FILE = "model.mobilemoe"
ROUNDED_AXIS: GroupAxis = "in"  # of weights that are rounded here
_LARGE = 2**28  # bytes of weights whose rewriting takes long enough to be announced
_T = TypeVar("_T")


def has_engine_file(folder: Path) -> bool:
    """Whether `folder` holds an engine file in place of its weights, as `write_engine_folder` makes it."""
    return (folder / ENGINE_FILE).is_file() and not ((folder / WEIGHTS).exists() or (folder / INDEX).exists())


def open_model(folder: Path, config: ModelConfig, open_path: Callable[[Path], _T], *, round_weights: bool) -> _T:
    """What `open_path` makes of the engine file of the model in `folder`, which is written first where it must be.

    BF16 weights become INT4 if `round_weights`; else they are a UsageError. Where no file can be kept, `open_path`
    gets an INT4 folder and the user a line. CheckpointError, also from `open_path`, for damaged files.
    """
    if has_engine_file(folder):
        return open_path(folder / ENGINE_FILE)
    if not (config.is_quantized or round_weights):
        raise UsageError(
            f"{folder} holds BF16 weights, and the native engine computes with INT4: take quantize='int4' "
            "(--quantize int4), which rounds them to nearest, or backend='torch' (--backend torch)"
        )
    kept = _kept_file(folder, "" if config.is_quantized else f"-int4-{ROUNDED_AXIS}")
    try:
        if kept is not None and kept.is_file():
            return open_path(kept)
    except CheckpointError:
        pass  # damaged, or of another version: it is written again
    with Checkpoint.open(folder) as checkpoint:  # its sentences say what is wrong with a checkpoint
        if config.is_quantized:
            if sum(path.stat().st_size for path in checkpoint.files) > _LARGE:
                _tell(f"preparing {folder} for the engine, once")
            return _open_rewritten(folder, kept, open_path)
        _tell(f"rounding {folder} to INT4 (to nearest, groups of the experts along {ROUNDED_AXIS!r})")
        with tempfile.TemporaryDirectory(prefix="mobilemoe-") as scratch:
            rounded = Path(scratch) / "int4"
            save_checkpoint(rounded, config, checkpoint.weight, format="int4", group_axis=ROUNDED_AXIS)
            return _open_rewritten(rounded, kept, open_path)


def write_engine_folder(source: Path, target: Path) -> None:
    """Writes the INT4 model `source` as the new folder `target`: its engine file, config and tokenizer.

    Every nibble and scale is kept. UsageError for BF16 weights, CheckpointError if `target` exists.
    """
    with Checkpoint.open(source) as checkpoint:
        if not checkpoint.config.is_quantized:
            raise UsageError(f"{source} holds BF16 weights: convert it with --format int4 first")
        with atomic_folder(target, CheckpointError) as part:
            shutil.copyfile(source / CONFIG, part / CONFIG)
            copy_companions(source, part)
            _rewrite(source, part / ENGINE_FILE)


def _open_rewritten(folder: Path, kept: Path | None, open_path: Callable[[Path], _T]) -> _T:
    try:
        if kept is None:
            raise OSError("there is no home folder")
        kept.parent.mkdir(parents=True, exist_ok=True)
        _rewrite(folder, kept)
        return open_path(kept)
    except (OSError, CheckpointError) as fault:
        opened = open_path(folder)  # in memory; it fails with a sentence if the checkpoint is to blame
        reason = fault.strerror if isinstance(fault, OSError) else None
        _tell(f"no engine file can be kept ({reason or fault}): this model is rewritten in memory at every start")
        return opened


def _rewrite(folder: Path, path: Path) -> None:
    with our_errors():
        native.repack(str(folder), str(path))


def _kept_file(folder: Path, suffix: str) -> Path | None:
    """The place in the cache for the model in `folder`, None where there can be no cache.

    Its name is a hash of config.json and of each weight file's size, time and header, which for files of ours holds
    the hash of the weights; the weights themselves are not read.
    """
    digest = hashlib.sha256()
    for path in sorted([folder / CONFIG, folder / INDEX, *folder.glob("*.safetensors")]):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            head = file.read(8)
            header_bytes = int.from_bytes(head, "little") if path.suffix == ".safetensors" else MAX_HEADER_BYTES
            head += file.read(min(header_bytes, MAX_HEADER_BYTES))
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns} {len(head)}\n".encode() + head)
    try:
        return cache_folder() / f"{digest.hexdigest()[:32]}{suffix}.mobilemoe"
    except OSError:
        return None


def _tell(sentence: str) -> None:
    print(f"mobilemoe: {sentence}", file=sys.stderr)
