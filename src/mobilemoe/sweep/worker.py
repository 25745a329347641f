"""A worker of a sweep: a process that takes one unit after another, trains and scores its runs, and adds their rows.

`python -m mobilemoe.sweep.worker OUT FIRST [ID...]` is what `sweep` starts. It reports on standard output, as JSON
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
from contextlib import ExitStack, closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mobilemoe.data.encoding import open_tokenizer
from mobilemoe.errors import ConfigError, MobileMoEError
from mobilemoe.files import read_json
from mobilemoe.sweep.faults import machine_fault
from mobilemoe.sweep.grid import make_grid
from mobilemoe.sweep.heldout import HeldOutRows, read_held_out
from mobilemoe.sweep.runs import Run, grid_runs
from mobilemoe.sweep.table import DOCUMENTS, FAILURES, RUNS, add_row, claimed, read_rows, write_documents
from mobilemoe.sweep.training import Training
from mobilemoe.sweep.units import Unit, units
from mobilemoe.train.parallel.distributed import join

GRID = "grid.json"
SPOILT = 3  # exit status of a worker whose last fault may have left its device unusable: another takes its place
WAIT = 1.0  # seconds
_CODE = (  # what a run's result depends on
    *("config*.py", "presets.py", "tokenizer/*.py", "chat/*.py", "model/**/*.py", "data/**/*.py", "train/**/*.py"),
    "sweep/*.py",
)


def train_run(training: Training, run: Run, text: HeldOutRows, stopped: Callable[[], bool]) -> dict[str, Any] | None:
    """Trains a run of a unit and scores it; returns its row, or None if `stopped` ended it.

    Writes documents/ID.csv in the sweep's folder. Raises the errors of training, and whatever torch raises.
    """
    if not training.finish(run, stopped):
        return None
    train = run.recipe.train
    scores = text.score(training.setup.model, training.world, train.precision, train.batch_size)
    write_documents(training.folders.parent / DOCUMENTS / f"{run.id}.csv", scores.documents)
    row = run.columns | training.measured(run) | {name: round(score, 6) for name, score in scores.losses.items()}
    return row | {"key": run.key, "heldout": text.fingerprint, "code": code_version()}


@cache
def code_version() -> str:
    """A hash of the Python files that a run's result depends on."""
    root = Path(__file__).parents[1]
    joined = hashlib.sha256()
    for path in sorted(path for pattern in _CODE for path in root.glob(pattern)):
        joined.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return joined.hexdigest()[:12]


def settled(out: Path) -> dict[str, str]:
    """The keys of the runs in `out` that need no more work, by id: those that have finished or failed."""
    return {row["id"]: row["key"] for table in (FAILURES, RUNS) for row in read_rows(out / table)}


def record_failure(out: Path, run: Run, reason: str) -> None:
    """Adds a line to failures.csv."""
    sentence = " ".join(reason.split())
    add_row(out / FAILURES, {"id": run.id, "block": run.blocks[0], "reason": sentence, "key": run.key})


def work(out: Path, first: str, only: list[str]) -> int:
    """Trains the runs of the grid in `out`, or those in `only` in that order, which no other process trains; returns
    the exit status.

    `first` names a unit to try before the others, so that workers which start together do not all want the same one.
    """
    stop: list[int] = []
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda number, _: stop.append(number))
    try:
        grid = make_grid(read_json(out / GRID, ConfigError), str(out / GRID))
        tokenizer, template = open_tokenizer(grid.tokenizer.path)
        text = read_held_out(grid.heldout, grid.data, tokenizer, template, grid.train.sequence_length)
    except MobileMoEError as fault:  # not the fault of a run: no run could be set up
        _say({"event": "stuck", "reason": str(fault)})
        return 1
    runs = {run.id: run for run in grid_runs(grid)}
    found = units(runs[name] for name in only or runs)
    found.sort(key=lambda unit: unit.id != first)
    try:
        while _work_through(out, found, text, stop) and not stop:
            time.sleep(WAIT)  # while other processes work: if one stops, its runs can be taken over
    except _SpoiltError:
        return SPOILT
    except BrokenPipeError:  # the sweep is gone
        return 1
    except Exception as fault:
        if (reason := machine_fault(fault)) is None:
            raise
        _print_trace()
        _say({"event": "halted", "reason": reason})
        return 1
    return 0


class _SpoiltError(Exception):
    """An unexpected fault has stopped a run and may have left the device unusable."""


def _work_through(out: Path, found: list[Unit], text: HeldOutRows, stop: list[int]) -> bool:
    """Tries each unit once; says whether there may be something left to do."""
    waits, known = False, settled(out)
    for unit in found:
        if stop:
            return False
        if not _left(unit, known):
            continue
        with claimed(out / "runs" / unit.id / ".claim") as mine:
            if not mine:
                waits = True
            elif left := _left(unit, settled(out)):  # asked again, now that no other worker can take them
                waits |= not _train_unit(out, Unit(unit.id, left), text, stop)
                _release()
    return waits


def _left(unit: Unit, known: dict[str, str]) -> tuple[Run, ...]:
    """The runs of a unit that are not settled."""
    return tuple(run for run in unit.runs if known.get(run.id) != run.key)


def _train_unit(out: Path, unit: Unit, text: HeldOutRows, stop: list[int]) -> bool:
    """Trains the runs of a unit and adds their rows; False if a failure has left some to be tried again."""
    training = None
    try:
        with ExitStack() as stack:
            for run in unit.runs:
                _say({"event": "started", "id": run.id})
                if training is None:
                    world = stack.enter_context(join(run.recipe))
                    training = stack.enter_context(closing(Training(unit, out, world)))
                row = train_run(training, run, text, lambda: bool(stop))
                if row is None:
                    return True
                add_row(out / RUNS, row)
                _say({"event": "finished", **row})
                shutil.rmtree(out / "runs" / run.id / "checkpoints", ignore_errors=True)
    except Exception as fault:
        if machine_fault(fault) is not None:
            raise
        expected = isinstance(fault, MobileMoEError)
        reason = str(fault) if expected else f"{type(fault).__name__}: {fault}"
        for concerned in unit.runs if training is None else training.at:
            record_failure(out, concerned, reason)
            _say({"event": "failed", "id": concerned.id, "reason": reason})
        _print_trace()
        if not expected:
            raise _SpoiltError from fault
        return False
    shutil.rmtree(out / "runs" / unit.id / "checkpoints", ignore_errors=True)
    return True


def _release() -> None:
    """Frees what the previous run used, for the other workers."""
    torch.compiler.reset()  # or else the next model's blocks would count as recompilations of this one's
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _print_trace() -> None:
    with suppress(OSError):  # the disk may be full
        traceback.print_exc()


def _say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def _stop_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(work(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
