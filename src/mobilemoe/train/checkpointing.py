"""A run's checkpoints: folders that appear whole, hold everything that the next step depends on, and are verified.

`checkpoints/step-00000500/` is itself a model folder: config.json, tokenizer and model.safetensors (fp32 weights),
beside optimizer.safetensors and state.json. Tensors that are trained but are no part of such a model (adapters, learnt
scales) are in extra.safetensors. A run with adapters writes the merged weights to model.safetensors, so that its
checkpoint can be used like any other; when the run is resumed, the frozen weights come from `model.init` again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilemoe.chat import ChatTemplate
from mobilemoe.checkpoint import Checkpoint, SafetensorsFile, weights, write_safetensors
from mobilemoe.checkpoint.container import Array
from mobilemoe.checkpoint.folder import COMPANION_HASH
from mobilemoe.checkpoint.run_folder import step_folder, step_folders
from mobilemoe.config import ModelConfig
from mobilemoe.errors import CheckpointError, ConfigError, TrainError
from mobilemoe.files import atomic_folder, read_json, sha256_file, write_json
from mobilemoe.model import MobileMoE
from mobilemoe.train import lora
from mobilemoe.train.optimizer import moments, restore_moments, updates
from mobilemoe.train.parallel.distributed import fill

_VERSION = 1
_LEFTOVER = re.compile(r"\.step-\d{8}(-shards|\..+)\.part")
# The files with tensors, and the JSON file whose hash each keeps.
_MODEL, _OPTIMIZER, _EXTRA = "model.safetensors", "optimizer.safetensors", "extra.safetensors"
_COMPANIONS = {_MODEL: "config.json", _OPTIMIZER: "state.json", _EXTRA: "state.json"}

Tensors = dict[str, dict[str, Tensor]]  # by file and name


@dataclass(frozen=True)
class Draft:
    """Everything but the tensors of a checkpoint that is to be written after `step` steps. `state` holds JSON values.

    After it has been written, only the newest `keep` checkpoints of the run remain.
    """

    run: Path
    step: int
    config: ModelConfig
    state: Mapping[str, Any]
    tokenizer_files: list[Path]
    template: ChatTemplate | None
    keep: int

    @property
    def folder(self) -> Path:
        return step_folder(self.run, self.step)

    def write(
        self,
        shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
        produce: Callable[[str, str], Array],
    ) -> None:
        """Writes the folder. `shapes` lists its tensors by file and name; `produce(file, name)` makes each of them."""
        with atomic_folder(self.folder, TrainError) as part:
            self.config.save(part)
            write_json(part / "state.json", {"version": _VERSION, "step": self.step, **self.state})
            for path in self.tokenizer_files:
                shutil.copyfile(path, part / path.name)
            if self.template is not None:
                self.template.save(part)
            for file, shape_of in shapes.items():
                specs = {name: ("F32", shape) for name, shape in shape_of.items()}
                companion = part / _COMPANIONS[file]
                metadata = {COMPANION_HASH + companion.name: sha256_file(companion)}
                write_safetensors(part / file, specs, partial(produce, file), metadata)
        for old in step_folders(self.run)[: -self.keep]:
            doomed = old.with_name(
                f".{old.name}.old.part"
            )  # renamed first, so that no reader sees a checkpoint that is half removed
            old.rename(doomed)
            shutil.rmtree(doomed)


def save(draft: Draft, tensors: Tensors) -> None:
    """Writes a checkpoint of one process."""
    shapes = {file: {name: tuple(tensor.shape) for name, tensor in of.items()} for file, of in tensors.items()}
    draft.write(shapes, lambda file, name: tensors[file][name].detach().float().cpu().numpy())


def state_of(model: MobileMoE, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What state.json says of model and optimizer: the number of updates, and a hash of the weights under adapters."""
    base = {"base": lora.base_fingerprint(model)} if lora.adapter_state(model) else {}
    return {"updates": updates(optimizer), **base}


def tensors_of(model: MobileMoE, optimizer: torch.optim.Optimizer) -> Tensors:
    """The tensors of model and optimizer that a checkpoint keeps."""
    held, known = model.state_dict(), weights(model.config)
    whole = lora.merged(model) if lora.adapter_state(model) else held
    tensors = {_MODEL: {name: whole[name] for name in known}, _OPTIMIZER: moments(model, optimizer)}
    extra = {name: tensor for name, tensor in held.items() if name not in known}
    return tensors | ({_EXTRA: extra} if extra else {})


def remove_leftovers(run: Path) -> None:
    """Removes checkpoints that were half written or half removed when a run was killed."""
    for path in step_folder(run, 0).parent.glob(".step-*.part"):
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def restore(run: Path, model: MobileMoE, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Puts back the newest checkpoint and returns its state, or None if there is none yet.

    Each process reads its own part, so the run may have another number of processes than the one that saved it.
    Raises TrainError if the checkpoint is damaged: after removing it, the run continues from the one before.
    """
    folders = step_folders(run)
    if not folders:
        return None
    folder = folders[-1]
    try:
        with Checkpoint.open(folder) as checkpoint:
            if not all(checkpoint.verify().values()):
                raise CheckpointError(f"{folder} is damaged")
            if checkpoint.config != replace(model.config, expert_group_axis=None):
                raise TrainError(f"{folder} is of another model than the recipe's: give this run another --out")
            state = read_json(folder / "state.json", CheckpointError)
            if state.get("version") != _VERSION:
                raise CheckpointError(f"{folder / 'state.json'} is of version {state.get('version')!r}, not {_VERSION}")
            # States that do not count updates are from versions in which every step was an update.
            restore_moments(model, optimizer, _read(folder, _OPTIMIZER), state.get("updates", state["step"]))
            _restore_weights(model, checkpoint, folder, state)
    except (CheckpointError, ConfigError) as fault:
        raise TrainError(f"{fault}: remove {folder} to continue from the checkpoint before it") from None
    return state


@torch.no_grad()
def _restore_weights(model: MobileMoE, checkpoint: Checkpoint, folder: Path, state: Mapping[str, Any]) -> None:
    adapted = bool(lora.adapter_state(model))
    if adapted and state.get("base") != lora.base_fingerprint(model):
        raise TrainError(f"{folder} holds adapters of other weights than those of model.init: give this run its model")
    held = model.state_dict()
    extra = _read(folder, _EXTRA) if held.keys() - checkpoint.weights.keys() else {}
    for name, tensor in held.items():
        if name not in checkpoint.weights:
            if name not in extra or extra[name].shape != tensor.shape:
                raise TrainError(f"{folder} holds no {name} of shape {list(tensor.shape)}: was it another recipe's?")
            fill(tensor, extra[name])
        elif not adapted:
            fill(tensor, checkpoint.weight(name))


def _read(folder: Path, file: str) -> dict[str, Array]:
    """The arrays of a file, mapped and read when they are used; CheckpointError if it or its companion is damaged."""
    companion = folder / _COMPANIONS[file]
    with SafetensorsFile(folder / file) as saved:
        if saved.verify() is False or saved.metadata.get(COMPANION_HASH + companion.name) != sha256_file(companion):
            raise CheckpointError(f"{folder} is damaged")
        return {name: saved.array(name) for name in saved.tensors}
