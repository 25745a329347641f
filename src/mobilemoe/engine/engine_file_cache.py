"""Where engine files come from: a checkpoint is rewritten once, kept in the user's cache and mapped from there.

An engine file carries the fingerprint of the config and the weights that it was made from, and a hash of its own
bytes; a cached one is used only if both fit. It is written under a temporary name and renamed, so that processes may
do this at the same time: the last one wins, with the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

from mobilemoe import accounting
from mobilemoe.checkpoint import Checkpoint, save_checkpoint
from mobilemoe.checkpoint.companions import copy_companions
from mobilemoe.checkpoint.draft import copy_draft
from mobilemoe.checkpoint.folder import CONFIG, ENGINE_FILE, INDEX, WEIGHTS
from mobilemoe.config import GroupAxis, ModelConfig
from mobilemoe.engine.fingerprints import check_whole, fingerprint, stamp
from mobilemoe.engine.native import native, our_errors
from mobilemoe.errors import CheckpointError, UsageError
from mobilemoe.files import atomic_folder, scratch_folder, write_json
from mobilemoe.user_cache import LIMIT_VARIABLE, about, clear_temporary, is_private, limit, prune, usable_cache

ROUNDED_AXIS: GroupAxis = "in"  # the group axis of BF16 experts that are rounded when they are opened
_LARGE = 2**28  # bytes of weights from which on rewriting takes so long that it is announced
OpenPath = Callable[[Path], native.Engine]


def has_engine_file(folder: Path) -> bool:
    """Whether `folder` holds an engine file in place of its weights, as `write_engine_folder` makes it."""
    return (folder / ENGINE_FILE).is_file() and not ((folder / WEIGHTS).exists() or (folder / INDEX).exists())


def open_model(folder: Path, config: ModelConfig, open_path: OpenPath, *, round_weights: bool) -> native.Engine:
    """Opens the model in `folder` with `open_path` from its engine file, which is written first if there is none.

    BF16 weights are rounded to INT4 if `round_weights`, else they are a UsageError. Where no engine file can be kept,
    `open_path` gets a folder of INT4 weights and a line on standard error says so. CheckpointError, also from
    `open_path`, for damaged files.
    """
    if has_engine_file(folder):
        return _open_in_place(folder, config, open_path)
    if not (config.is_quantized or round_weights):
        raise UsageError(
            f"{folder} holds BF16 weights, and the native engine computes with INT4: take quantize='int4' "
            "(--quantize int4), which rounds them to nearest, or backend='torch' (--backend torch)"
        )
    place = _find_place(accounting.int4_file_bytes(config))
    if isinstance(place, Path):
        with suppress(CheckpointError):  # a damaged file, or one of another version, is written again
            origin = fingerprint(folder)
            kept = _kept_file(place, origin, config)
            if is_private(kept):
                check_whole(kept)
                opened = open_path(kept)
                if opened.origin == origin:
                    _note_use(kept, folder)
                    return opened
    before = stamp(folder)
    with Checkpoint.open(folder) as checkpoint:  # checks the checkpoint and says what is wrong with it
        if config.is_quantized:
            if sum(path.stat().st_size for path in checkpoint.files) > _LARGE:
                _tell(f"preparing {folder} for the engine, once")
            return _open_rewritten(folder, folder, before, place, config, open_path)
        _tell(f"rounding {folder} to INT4 (to nearest, groups of the experts along {ROUNDED_AXIS!r})")
        with scratch_folder() as scratch:
            rounded = scratch / "int4"
            save_checkpoint(rounded, config, checkpoint.weight, format="int4", group_axis=ROUNDED_AXIS)
            return _open_rewritten(folder, rounded, before, place, config, open_path)


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
            copy_draft(source, part, checkpoint.config)
            try:
                _rewrite(source, part / ENGINE_FILE)
            except CheckpointError as fault:
                raise CheckpointError(str(fault).replace(str(part), str(target))) from None


def engine_files(folder: Path) -> list[Path]:
    """The engine files that the model in `folder` runs from: its own, or the cached ones.

    CheckpointError if it cannot be read.
    """
    if has_engine_file(folder):
        return [folder / ENGINE_FILE]
    try:
        place = usable_cache("engine")
    except OSError:
        return []
    return [path for path in [_kept_file(place, fingerprint(folder), ModelConfig.load(folder))] if is_private(path)]


def is_whole(path: Path) -> bool:
    """Reads all of an engine file: whether every byte is the one that was written."""
    try:
        with our_errors():
            native.verify(str(path))
    except CheckpointError:
        return False
    return True


def check_source(folder: Path, opened: native.Engine) -> None:
    """Reads the model in `folder` again: CheckpointError unless `opened` was made from its present contents."""
    if has_engine_file(folder):
        with our_errors():
            native.verify(str(folder / ENGINE_FILE))
    elif fingerprint(folder, anew=True) != opened.origin:
        raise CheckpointError(f"the weights in {folder} have changed since they were opened: start again")


def _open_in_place(folder: Path, config: ModelConfig, open_path: OpenPath) -> native.Engine:
    check_whole(folder / ENGINE_FILE)
    opened = open_path(folder / ENGINE_FILE)
    inside = ModelConfig.from_dict(json.loads(opened.config_json), ENGINE_FILE)
    compared = [field.name for field in fields(config) if field.compare]
    names = [name for name in compared if getattr(config, name) != getattr(inside, name)]
    if names:
        raise CheckpointError(
            f"{folder}: its engine file and its {CONFIG} are of different models, they differ in {', '.join(names)}: "
            "convert the model again"
        )
    return opened


def _find_place(size: int) -> Path | str:
    """The folder for an engine file of `size` bytes, or why there is none."""
    if size > limit():
        return f"{LIMIT_VARIABLE} allows {limit():,} bytes, and it would have {size:,}"
    try:
        return usable_cache("engine")
    except OSError as fault:
        return str(fault)


def _kept_file(place: Path, origin: bytes, config: ModelConfig) -> Path:
    """The path of the engine file for this fingerprint. It names the versions of the layout and of the rounding."""
    rounded = "" if config.is_quantized else f"-int4-{ROUNDED_AXIS}-{version('mobilemoe')}"
    return place / f"{origin.hex()[:32]}{rounded}-v{native.ENGINE_VERSION}.mobilemoe"


def _open_rewritten(
    folder: Path, int4: Path, before: str, place: Path | str, config: ModelConfig, open_path: OpenPath
) -> native.Engine:
    """Writes the engine file of the model in `folder`, into `place`, and opens it.

    `int4` holds the INT4 weights: it is `folder` itself, or what was rounded from it. Where no file can be kept, or
    `folder` no longer has the stamp `before` that it had when reading began, the model is rewritten in memory.
    """
    reason = place
    if isinstance(place, Path):
        try:
            origin = fingerprint(folder, anew=True)
            if stamp(folder) != before:
                raise CheckpointError(f"{folder} changed while it was read")
            kept = _kept_file(place, origin, config)
            clear_temporary()
            _rewrite(int4, kept, None if int4 == folder else origin)
            kept.chmod(0o600)
            _note_use(kept, folder)
            prune(kept)
            opened = open_path(kept)
            if opened.origin == origin:
                return opened
            reason = f"{folder} changed while it was read"
        except (OSError, CheckpointError) as fault:
            reason = (isinstance(fault, OSError) and fault.strerror) or str(fault)
    opened = open_path(int4)  # in memory; it fails with a sentence if the checkpoint is to blame
    _tell(f"no engine file can be kept ({reason}): this model is rewritten in memory at every start")
    return opened


def _rewrite(folder: Path, path: Path, origin: bytes | None = None) -> None:
    with our_errors():
        native.repack(str(folder), str(path), origin=origin)


def _note_use(kept: Path, folder: Path) -> None:
    with suppress(OSError):  # the cache may be read-only
        if about(kept).exists():
            os.utime(about(kept))
        else:
            write_json(about(kept), {"model": str(folder.absolute())})


def _tell(sentence: str) -> None:
    print(f"mobilemoe: {sentence}", file=sys.stderr)
