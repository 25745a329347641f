"""A worker of a sweep: a process that takes one run after the other from the plan, trains it, scores it, adds its row.

`python -m mobilemoe.scaling.sweep.worker OUT [ID...]` is what `sweep` starts. It says on standard output, as JSON
lines, which runs it starts and how they end; it stops when its standard input closes, so none outlives the sweep.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mobilemoe.data.encoding import open_tokenizer
from mobilemoe.data.sources import digest
from mobilemoe.errors import ConfigError, MobileMoEError, TrainError
from mobilemoe.files import read_json
from mobilemoe.scaling.sweep.grid import Run, make_grid, plan
from mobilemoe.scaling.sweep.heldout import HeldOutRows, read_held_out
from mobilemoe.scaling.sweep.table import FAILURES, RUNS, add_row, claimed, read_rows
from mobilemoe.train.distributed import World, join
from mobilemoe.train.loop import Trainer
from mobilemoe.train.metrics import MetricsLog, read_metrics
from mobilemoe.train.recipe import Recipe

GRID = "grid.json"
SPOILT = 3  # exit status of a worker whose last fault may have left its device unusable: another takes its place
WAIT = 0.5  # seconds
LAST_SHARE = 0.05  # of the steps, over which the final training loss is a mean
_CODE = (  # what a run's result depends on
    *("config.py", "presets.py", "tokenizer.py", "model/**/*.py", "data/*.py", "train/*.py"),
    "scaling/sweep/*.py",
)


class Training(Trainer):
    """A run of a sweep: steps without pictures, and checkpoints only on the way, since what counts is its row."""

    def finish(self, stopped: Callable[[], bool]) -> bool:
        """Goes on from the last checkpoint to the recipe's end; False if `stopped` ended it early, which is saved."""
        train, loader = self.train, self.setup.loader
        state = self._begin()
        step, tokens, loss = state["step"], state["tokens"], state["loss"]
        saved = step
        log = MetricsLog(self.run / "metrics.jsonl", step)
        try:
            while step < train.steps:
                if stopped():
                    if step > saved:
                        self._save(step, tokens, loss)
                    return False
                began = time.monotonic()
                begins = loader.state_dict()["positions"]
                loss = self.stepper.step(next(loader), step, begins)["loss"]
                step, tokens = step + 1, tokens + train.batch_size * train.sequence_length
                log.write({"step": step, "loss": loss, "seconds": time.monotonic() - began})
                if step % train.checkpoint_every == 0 and step < train.steps:
                    self._save(step, tokens, loss)
                    saved = step
        finally:
            loader.close()
            log.close()
        return True


def train_run(run: Run, text: HeldOutRows, folder: Path, stopped: Callable[[], bool]) -> dict[str, Any] | None:
    """Trains one run in `folder`, where it goes on if it was interrupted; returns its row, None if `stopped` ended it.

    Raises the rooms' own errors, and what torch raises.
    """
    recipe = run.recipe
    _forget_other(recipe, folder)
    with join(recipe) as world:
        training = Training(recipe, folder, world)
        if not training.finish(stopped):
            return None
        scores = text.score(training.setup.model, world.device, recipe.train.precision, recipe.train.batch_size)
        row = run.columns | _measured(run, training, world) | {name: round(score, 6) for name, score in scores.items()}
        row |= {"key": run.key, "heldout": text.fingerprint, "code": code_version()}
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return row


def _measured(run: Run, training: Training, world: World) -> dict[str, Any]:
    """The columns that the training itself gives."""
    steps = read_metrics(training.run / "metrics.jsonl")
    last = steps[-max(1, round(LAST_SHARE * len(steps))) :]
    seconds = sum(step["seconds"] for step in steps)
    state = training.setup.loader.state_dict()
    # The seed is a column of its own, and changes the order of the same text.
    identity = {name: value for name, value in state["identity"].items() if name != "seed"}
    on_gpu = world.device.type == "cuda"
    return {
        "train_loss": round(sum(step["loss"] for step in last) / len(last), 6),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(run.tokens / seconds),
        "repeated": int(any(position[0] > 0 for position in state["positions"].values())),  # into a second epoch
        "device": torch.cuda.get_device_name(world.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "torch": str(torch.__version__),
        "data": digest(json.dumps(identity, sort_keys=True)),
    }


def _forget_other(recipe: Recipe, folder: Path) -> None:
    """Removes what a run of this name left unfinished under another recipe."""
    saved = folder / "recipe.json"
    if saved.exists() and read_json(saved, TrainError) != json.loads(json.dumps(recipe.model_dump())):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)


@cache
def code_version() -> str:
    """A hash of the Python files that a run's result depends on."""
    root = Path(__file__).parents[2]
    joined = hashlib.sha256()
    for path in sorted(path for pattern in _CODE for path in root.glob(pattern)):
        joined.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return joined.hexdigest()[:12]


def settled(out: Path) -> dict[str, str]:
    """The keys of the runs in `out` that need no more work, by id: those finished and those that failed."""
    return {row["id"]: row["key"] for table in (FAILURES, RUNS) for row in read_rows(out / table)}


def record_failure(out: Path, run: Run, reason: str) -> None:
    """Adds a line to failures.csv."""
    sentence = " ".join(reason.split())
    add_row(out / FAILURES, {"id": run.id, "block": run.blocks[0], "reason": sentence, "key": run.key})


def work(out: Path, only: set[str]) -> int:
    """Does what nobody does yet of the plan in `out`, in its order; returns the exit status."""
    stop: list[int] = []
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda number, _: stop.append(number))
    try:
        grid = make_grid(read_json(out / GRID, ConfigError), str(out / GRID))
        tokenizer, template = open_tokenizer(grid.tokenizer.path)
        text = read_held_out(grid.heldout, grid.data, tokenizer, template, grid.train.sequence_length)
    except MobileMoEError as fault:  # no run's own: none could be made
        _say({"event": "stuck", "reason": str(fault)})
        return 1
    runs = [run for run in plan(grid) if not only or run.id in only]
    while (waits := _work_through(out, runs, text, stop)) and not stop:
        time.sleep(WAIT)  # for what other processes are at: should one stop, its run is there to be taken
    return SPOILT if waits is None else 0


def _work_through(out: Path, runs: list[Run], text: HeldOutRows, stop: list[int]) -> bool | None:
    """Tries each run once; whether others are still at some of them, or None after a fault that is no run's own."""
    waits = False
    for run in runs:
        if stop:
            return False
        folder = out / "runs" / run.id
        with claimed(folder / ".claim") as mine:
            if settled(out).get(run.id) == run.key:
                continue
            if not mine:
                waits = True
                continue
            _say({"event": "started", "id": run.id})
            try:
                row = train_run(run, text, folder, lambda: bool(stop))
                if row is not None:
                    add_row(out / RUNS, row)
                    _say({"event": "finished", **row})
            except Exception as fault:
                expected = isinstance(fault, MobileMoEError)
                reason = str(fault) if expected else f"{type(fault).__name__}: {fault}"
                record_failure(out, run, reason)
                _say({"event": "failed", "id": run.id, "reason": reason})
                traceback.print_exc()
                if not expected:
                    return None
        _release()
    return waits


def _release() -> None:
    """Gives back what the run before used, for the workers beside this one."""
    torch.compiler.reset()  # or else the next model's blocks would count as recompilations of this one's
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def _stop_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(work(Path(sys.argv[1]), set(sys.argv[2:])))
