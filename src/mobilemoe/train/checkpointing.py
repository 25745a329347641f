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
from mobilemoe.errors import CheckpointError, TrainError
from mobilemoe.files import atomic_folder, read_json, write_json
from mobilemoe.model import MobileMoE
from mobilemoe.train.optimizer import moments, restore_moments

FOLDER = "checkpoints"
_STEP = re.compile(r"step-(\d{8})")
_VERSION = 1


def step_folders(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / FOLDER).glob("step-*") if _STEP.fullmatch(path.name))


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
    folder = run / FOLDER / f"step-{step:08d}"
    if not folder.exists():
        with atomic_folder(folder, TrainError) as part:
            replace(model.config, expert_group_axis=None).save(part)
            _write_tensors(part / "model.safetensors", model.state_dict())
            _write_tensors(part / "optimizer.safetensors", moments(model, optimizer))
            write_json(part / "state.json", {"version": _VERSION, "step": step, **state})
            for path in tokenizer_files:
                shutil.copyfile(path, part / path.name)
    for old in step_folders(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def restore(run: Path, model: MobileMoE, optimizer: torch.optim.AdamW) -> dict[str, Any] | None:
    """Puts back the newest checkpoint and returns its state, or None if there is none yet.

    Raises TrainError if it is damaged: an older one beside it may be used by removing it.
    """
    folders = step_folders(run)
    if not folders:
        return None
    folder = folders[-1]
    try:
        with Checkpoint.open(folder) as checkpoint, SafetensorsFile(folder / "optimizer.safetensors") as saved:
            if checkpoint.config != replace(model.config, expert_group_axis=None):
                raise TrainError(f"{folder} is of another model than the recipe's: give this run another --out")
            if saved.verify() is False or not all(checkpoint.verify().values()):
                raise CheckpointError(f"{folder} is damaged")
            state = read_json(folder / "state.json", TrainError)
            model.load_weights(checkpoint.weight)
            tensors = {name: torch.from_numpy(saved.array(name).copy()) for name in saved.tensors}
            restore_moments(model, optimizer, tensors, state["step"])
    except CheckpointError as fault:
        raise TrainError(f"{fault}: remove {folder} to go on from the checkpoint before it") from None
    return state


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    specs = {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_safetensors(path, specs, lambda name: tensors[name].detach().float().cpu().numpy())
