"""Runs a grid of small trainings in several processes, and keeps the finished runs whatever stops it.

The folder of a sweep holds grid.json (what is to be run), runs.csv (a row for each finished run), failures.csv, a log
for each worker, and runs/ID with the metrics of each run, and its checkpoint while it is unfinished. Workers claim runs
by file locks, so that several sweeps may work in one folder: under torchrun each process is a sweep with the GPU of its
rank.
"""

from __future__ import annotations

import fnmatch
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from mobilemoe import accounting
from mobilemoe.cores import allowed_cores
from mobilemoe.data.mixture import build_sources
from mobilemoe.errors import MachineError, TrainError, UsageError
from mobilemoe.files import write_json
from mobilemoe.progress import tell
from mobilemoe.sweep.grid import Grid
from mobilemoe.sweep.runs import Run, grid_runs
from mobilemoe.sweep.table import FAILURES, RUNS, read_rows, remove_rows
from mobilemoe.sweep.units import units
from mobilemoe.sweep.worker import GRID, record_failure, settled
from mobilemoe.train.estimate import expected_speed
from mobilemoe.train.interrupts import handled

PROCESSES_OF_A_GPU = 4  # small models leave a GPU idle between their kernels
SAVE_SECONDS = 120.0  # how long workers may take to save their current runs
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Summary:
    """How a call of `sweep` ended: the ids of the requested runs that are finished, that failed, and that are left."""

    finished: tuple[str, ...]
    failed: tuple[str, ...]
    left: tuple[str, ...]
    seconds: float


def choose(grid: Grid, only: tuple[str, ...] = ()) -> list[Run]:
    """The runs of a grid in their order: all, or those whose id or block matches one of the patterns in `only`.

    The latter come in the order of the patterns, and for each pattern the longest training first. UsageError for a
    pattern that matches none.
    """
    runs = grid_runs(grid)
    if not only:
        return runs
    chosen: dict[str, Run] = {}
    for name in only:
        matched = [run for run in runs if fnmatch.filter((run.id, *run.blocks), name)]
        if not matched:
            raise UsageError(f"the grid has no run and no block {name!r}: --list shows them")
        chosen |= {run.id: run for run in sorted(matched, key=lambda run: -run.flops) if run.id not in chosen}
    return list(chosen.values())


def flops_per_second(grid: Grid, runs: list[Run]) -> float:
    """The expected training speed of the machine: what the grid says, or else the estimate for the first run."""
    if grid.scaling.flops_per_second is not None:
        return grid.scaling.flops_per_second
    run = runs[0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed, _ = expected_speed(run.recipe, run.config, device, 1)
    return speed * accounting.training_flops_per_token(run.config, run.recipe.train.sequence_length)


def sweep(
    grid: Grid,
    out: Path,
    *,
    only: tuple[str, ...] = (),
    processes: int | None = None,
    on_event: Callable[[dict[str, Any], Summary], None] = lambda event, so_far: None,
) -> Summary:
    """Trains the runs of `grid` that are not finished in `out`, several `processes` at once, until none is left.

    Runs that failed before are left out, unless `only` names them or their block. `processes` are by default 4 for each
    GPU, or 1. `on_event` is called for each run that starts, finishes (with its row) or fails (with the reason). An
    interrupt (Ctrl-C, SIGTERM, SIGHUP) saves the current runs and returns; a second one does not wait. TrainError if
    `out` holds finished runs of another grid, or if no worker can start. Raises MachineError if a fault of the machine
    stopped a worker, after the current runs were saved; such runs do not count as failed.
    """
    chosen = choose(grid, only)
    visible = _gpus()
    count = processes or max(1, PROCESSES_OF_A_GPU * len(visible))
    build_sources(grid.data, Path.cwd())  # so that a wrong path is reported once, and not for every run
    _refuse_other(out, grid_runs(grid))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / GRID, grid.model_dump(mode="json"))
    if only:
        remove_rows(out / FAILURES, {run.id for run in chosen})
    with _interrupts() as interrupted:
        pool = _WorkerPool(out, chosen, only=bool(only), count=count, gpus=visible, on_event=on_event)
        try:
            pool.work(interrupted)
        finally:
            pool.end()
    if pool.halted is not None:
        raise MachineError(f"the sweep has stopped, and the same command continues from there: {pool.halted}")
    return pool.summary()


def _refuse_other(out: Path, runs: list[Run]) -> None:
    """Raises TrainError for a finished run whose id is in the grid, but whose recipe differs."""
    keys = {run.id: run.key for run in runs}
    for row in read_rows(out / RUNS):
        if keys.get(row["id"], row["key"]) != row["key"]:
            raise TrainError(
                f"{out / RUNS} holds {row['id']} as another recipe trained it: give this sweep another --out"
            )


@dataclass
class _Worker:
    """A worker process, its log, and its current run."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    output: IO[bytes] = field(init=False)
    unread: bytes = b""  # the beginning of a line whose end has not arrived
    started: str | None = None
    reported: bool = False  # whether it has reported anything

    def __post_init__(self) -> None:
        assert self.process.stdout is not None  # a pipe
        self.output = self.process.stdout


class _WorkerPool:
    """The worker processes of one sweep. A worker ends when no run is left for it; one that crashes is replaced."""

    def __init__(
        self,
        out: Path,
        runs: list[Run],
        *,
        only: bool,
        count: int,
        gpus: list[str],
        on_event: Callable[[dict[str, Any], Summary], None],
    ) -> None:
        self.out, self.runs, self.only, self.count, self.gpus = out, {run.id: run for run in runs}, only, count, gpus
        self.on_event = on_event
        self.began = time.monotonic()
        self.selector = selectors.DefaultSelector()
        self.workers: list[_Worker] = []
        self.halted: str | None = None  # the fault of the machine that has stopped a worker
        self.ended = 0  # runs that have finished or failed

    def summary(self) -> Summary:
        done = {row["id"]: row["key"] for row in read_rows(self.out / RUNS)}
        known = settled(self.out)
        finished = tuple(name for name, run in self.runs.items() if done.get(name) == run.key)
        failed = tuple(name for name, run in self.runs.items() if name not in finished and known.get(name) == run.key)
        left = tuple(name for name in self.runs if name not in finished and name not in failed)
        return Summary(finished, failed, left, time.monotonic() - self.began)

    def work(self, interrupted: list[int]) -> None:
        """Runs until every worker has ended. The first interrupt asks the workers to stop, the second kills them."""
        summary = self.summary()
        self.ended = len(self.runs) - len(summary.left)
        left = units(self.runs[name] for name in summary.left)
        for number, unit in zip(range(self.count), left, strict=False):
            self._start(number, unit.id)
        asked, deadline = 0, float("inf")
        while self.workers:
            for key, _ in self.selector.select(timeout=0.2):
                self._read_events(key.data, stopping=asked > 0)
            tell(self.ended, len(self.runs), "runs ended")
            signals = max(len(interrupted), int(self.halted is not None))
            if signals > asked:
                asked = signals
                deadline = time.monotonic() + SAVE_SECONDS
                for worker in self.workers:
                    worker.process.send_signal(signal.SIGTERM if asked == 1 else signal.SIGKILL)
            if time.monotonic() > deadline:
                return

    def end(self) -> None:
        """Kills the workers that are still running."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()
            worker.output.close()
        self.selector.close()

    def _start(self, number: int, first: str = "") -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _TORCHRUN}
        threads = str(max(1, allowed_cores() // self.count))
        for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
            environment.setdefault(name, threads)
        # As `train` does: returning the memory of activations to the system in each step costs a fifth of the time.
        environment |= {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
        if self.gpus:
            # Forwards, then backwards: the longest units come first, so one GPU gets the longest and the shortest.
            environment["CUDA_VISIBLE_DEVICES"] = [*self.gpus, *self.gpus[::-1]][number % (2 * len(self.gpus))]
        rank = os.environ.get("RANK", "0")
        log = self.out / "logs" / f"worker-{rank}-{number}.log"
        log.parent.mkdir(exist_ok=True)
        names = list(self.runs) if self.only else []
        command = [sys.executable, "-m", "mobilemoe.sweep.worker", str(self.out), first, *names]
        with log.open("a") as errors:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C reaches only the sweep, which then asks the workers to stop
            )
        worker = _Worker(number, process, log)
        self.workers.append(worker)
        self.selector.register(worker.output, selectors.EVENT_READ, worker)

    def _read_events(self, worker: _Worker, stopping: bool) -> None:
        """Reads what a worker reports, or notices that it has ended."""
        received = os.read(worker.output.fileno(), 2**16)
        if not received:
            self._ended(worker, stopping)
            return
        *lines, worker.unread = (worker.unread + received).split(b"\n")
        for event in map(json.loads, lines):
            if event["event"] == "stuck":
                raise TrainError(event["reason"])
            if event["event"] == "halted":
                self.halted = f"{worker.started}: {event['reason']}" if worker.started else event["reason"]
                worker.started = None
                continue
            worker.reported = True
            worker.started = event["id"] if event["event"] == "started" else None
            self._report(event)

    def _report(self, event: dict[str, Any]) -> None:
        summary = self.summary()
        self.ended = len(self.runs) - len(summary.left)
        self.on_event(event, summary)

    def _ended(self, worker: _Worker, stopping: bool) -> None:
        """Records how a worker ended, and starts another one if it crashed."""
        self.selector.unregister(worker.output)
        self.workers.remove(worker)
        worker.output.close()
        status = worker.process.wait()
        if status == 0 or stopping or self.halted is not None:
            return
        if not worker.reported:
            raise TrainError(f"a worker could not start ({_last_line(worker.log)}): see {worker.log}")
        if (
            worker.started is not None and worker.started in self.summary().left
        ):  # the run may have ended in the last lines that it wrote
            if status == -signal.SIGKILL:  # the system killed it: that is not the fault of the run
                self.halted = f"the process of {worker.started} was killed, as happens when memory runs out"
                return
            reason = f"its process ended with {f'signal {-status}' if status < 0 else f'status {status}'}"
            record_failure(self.out, self.runs[worker.started], reason)
            self._report({"event": "failed", "id": worker.started, "reason": reason})
        self._start(worker.number)


def _gpus() -> list[str]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES names them; under torchrun that of this process's rank."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if torch.cuda.is_available() else []
    if names == [""]:
        names = [str(index) for index in range(torch.cuda.device_count())]
    if names and "LOCAL_RANK" in os.environ:
        return [names[int(os.environ["LOCAL_RANK"]) % len(names)]]
    return names


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """While the context lasts, the signals of `handled` are added to the list that it gives, and do nothing else."""
    seen: list[int] = []
    with handled(lambda number, _: seen.append(number)):
        yield seen
