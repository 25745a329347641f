"""Trains a unit: one model follows the trunk, branches off for each run's decay, and returns to the trunk.

The folder runs/TRUNK keeps the newest state of the trunk, and runs/ID the state of an interrupted decay; both are
removed when they are no longer needed. A run is bit for bit what it would be alone.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mobilemoe.checkpoint.run_folder import step_folder, step_folders
from mobilemoe.data.sources import digest
from mobilemoe.errors import TrainError
from mobilemoe.files import read_json
from mobilemoe.sweep.runs import Run
from mobilemoe.sweep.units import Unit
from mobilemoe.train.loop import Trainer
from mobilemoe.train.metrics import MetricsLog, read_metrics
from mobilemoe.train.parallel.distributed import World
from mobilemoe.train.recipe import Recipe

LAST_SHARE = 0.05  # the share of the steps over which the final training loss is averaged


class Training(Trainer):
    """A unit, set up in the folder `out` of its sweep; `at` are the runs that the current step belongs to."""

    def __init__(self, unit: Unit, out: Path, world: World) -> None:
        self.unit, self.folders, self.trunk = unit, out / "runs", out / "runs" / unit.id
        longest = unit.runs[-1].recipe
        _forget_other(longest, self.trunk)
        branch = unit.runs[0].shared_steps
        if branch and any(saved > step_folder(self.trunk, branch) for saved in step_folders(self.trunk)):
            shutil.rmtree(
                self.trunk / "checkpoints"
            )  # this state was saved by longer runs, beyond the point where this one branches off
        super().__init__(longest, self.trunk, world)
        self.at = unit.runs
        self.reached: dict[str, Any] | None = None  # the state of the model in memory

    def finish(self, run: Run, stopped: Callable[[], bool]) -> bool:
        """Trains a run of the unit to its end; False if `stopped` ended it early, in which case its state was saved."""
        branch = self.folders / run.id
        _forget_other(run.recipe, branch)
        if run.shared_steps and not step_folders(branch):
            self.at = self.unit.runs[self.unit.runs.index(run) :]
            if not self._advance(self.unit.runs[-1].recipe, self.trunk, run.shared_steps, stopped, save=True):
                return False
        self.at = (run,)
        return self._advance(run.recipe, branch, run.recipe.train.steps, stopped, save=False)

    def close(self) -> None:
        self.setup.loader.close()

    def _advance(self, recipe: Recipe, folder: Path, until: int, stopped: Callable[[], bool], *, save: bool) -> bool:
        """Continues to step `until`, from the state saved in `folder` if there is one; with `save` the state there is
        saved.
        """
        self.recipe, self.run, self.train, self.stepper.train = recipe, folder, recipe.train, recipe.train
        found = self._begin()
        state = found if found["step"] or self.reached is None else self.reached
        step, tokens, loss = state["step"], state["tokens"], state["loss"]
        saved, loader = found["step"], self.setup.loader
        log = MetricsLog(folder / "metrics.jsonl", step)
        try:
            while step < until and not stopped():
                began = time.monotonic()
                begins = loader.state_dict()["positions"]
                self.stepper.step(next(loader), step, begins)
                (row,) = self.stepper.read()
                loss = row["loss"]
                step, tokens = step + 1, tokens + self.train.batch_size * self.train.sequence_length
                log.write({"step": step, "loss": loss, "seconds": time.monotonic() - began})
                if step % self.train.checkpoint_every == 0 and step < until:
                    self._save(step, tokens, loss)
                    saved = step
        finally:
            log.close()
        self.reached = {"step": step, "tokens": tokens, "loss": loss}
        if step > saved and (save or step < until):
            self._save(step, tokens, loss)
        return bool(step == until)

    def measured(self, run: Run) -> dict[str, Any]:
        """The columns that the training of a finished run provides."""
        own = read_metrics(self.folders / run.id / "metrics.jsonl")
        shared = [step for step in read_metrics(self.trunk / "metrics.jsonl") if step["step"] <= run.shared_steps]
        steps = [*shared, *own] if run.shared_steps else own
        last = steps[-max(1, round(LAST_SHARE * len(steps))) :]
        seconds = sum(step["seconds"] for step in steps)
        state = self.setup.loader.state_dict()
        # The seed is a column of its own, and changes the order of the same text.
        identity = {name: value for name, value in state["identity"].items() if name != "seed"}
        device = self.world.device
        on_gpu = device.type == "cuda"
        return {
            "train_loss": round(sum(step["loss"] for step in last) / len(last), 6),
            "seconds": round(seconds, 3),
            "tokens_per_second": round(run.tokens / seconds),
            "repeated": int(
                any(position[0] > 0 for position in state["positions"].values())
            ),  # the second epoch has begun
            "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
            "torch": str(torch.__version__),
            "data": digest(json.dumps(identity, sort_keys=True)),
        }


def _forget_other(recipe: Recipe, folder: Path) -> None:
    """Removes what a run or trunk of the same name, but with another recipe, left unfinished."""
    saved = folder / "recipe.json"
    if saved.exists() and _essence(read_json(saved, TrainError)) != _essence(json.loads(recipe.model_dump_json())):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)


def _essence(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the entries that may differ between runs of one trunk; the name of a run contains its tokens."""
    train = {name: value for name, value in recipe.get("train", {}).items() if name != "steps"}
    return recipe | {"name": "", "train": train}
