"""A run's checkpoints: folders that appear whole, hold everything that the next step depends on, and are verified.

`checkpoints/step-00000500/` is itself a model folder: config.json, tokenizer and model.safetensors (fp32 weights),
beside optimizer.safetensors and state.json.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilemoe.checkpoint import Checkpoint, SafetensorsFile, write_safetensors
from mobilemoe.checkpoint.folder import COMPANION_HASH
from mobilemoe.checkpoint.run_folder import step_folder, step_folders
from mobilemoe.errors import CheckpointError, ConfigError, TrainError
from mobilemoe.files import atomic_folder, read_json, sha256_file, write_json
from mobilemoe.model import MobileMoE
from mobilemoe.train.optimizer import moments, restore_moments

_VERSION = 1
_LEFTOVER = re.compile(r"\.step-\d{8}\..+\.part")


def save(
    run: Path,
    step: int,
    model: MobileMoE,
    optimizer: torch.optim.AdamW,
    state: Mapping[str, Any],
    tokenizer_files: list[Path],
    keep: int,
) -> Path:
    """Writes the checkpoint after `step` steps with `state` (JSON values), then removes all but the newest `keep`."""
    folder = step_folder(run, step)
    if not folder.exists():
        with atomic_folder(folder, TrainError) as part:
            replace(model.config, expert_group_axis=None).save(part)
            write_json(part / "state.json", {"version": _VERSION, "step": step, **state})
            _write_tensors(part / "model.safetensors", model.state_dict(), part / "config.json")
            _write_tensors(part / "optimizer.safetensors", moments(model, optimizer), part / "state.json")
            for path in tokenizer_files:
                shutil.copyfile(path, part / path.name)
    for old in step_folders(run)[:-keep]:
        doomed = old.with_name(f".{old.name}.old.part")  # out of sight first: a half checkpoint must not be seen
        old.rename(doomed)
        shutil.rmtree(doomed)
    return folder


def remove_leftovers(run: Path) -> None:
    """Removes the checkpoints that a killed run left half written or half removed."""
    for path in step_folder(run, 0).parent.glob(".step-*.part"):
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def restore(run: Path, model: MobileMoE, optimizer: torch.optim.AdamW) -> dict[str, Any] | None:
    """Puts back the newest checkpoint and returns its state, or None if there is none yet.

    Raises TrainError if it is damaged: an older one beside it may be used by removing it.
    """
    folders = step_folders(run)
    if not folders:
        return None
    folder = folders[-1]
    state_path = folder / "state.json"
    try:
        with Checkpoint.open(folder) as checkpoint, SafetensorsFile(folder / "optimizer.safetensors") as saved:
            if saved.verify() is False or not all(checkpoint.verify().values()):
                raise CheckpointError(f"{folder} is damaged")
            if checkpoint.config != replace(model.config, expert_group_axis=None):
                raise TrainError(f"{folder} is of another model than the recipe's: give this run another --out")
            state = read_json(state_path, CheckpointError)
            digest = saved.metadata.get(COMPANION_HASH + state_path.name)
            if digest is not None and digest != sha256_file(state_path):
                raise CheckpointError(f"{state_path} is damaged")
            if state.get("version") != _VERSION:
                raise CheckpointError(f"{state_path} is of version {state.get('version')!r}, not {_VERSION}")
            model.load_weights(checkpoint.weight)
            tensors = {name: torch.from_numpy(saved.array(name).copy()) for name in saved.tensors}
            restore_moments(model, optimizer, tensors, state["step"])
    except (CheckpointError, ConfigError) as fault:
        raise TrainError(f"{fault}: remove {folder} to go on from the checkpoint before it") from None
    return state


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], companion: Path) -> None:
    specs = {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    metadata = {COMPANION_HASH + companion.name: sha256_file(companion)}
    write_safetensors(path, specs, lambda name: tensors[name].detach().float().cpu().numpy(), metadata)
