"""The training loop (spec section 5): it steps, validates, saves and stops. A killed run resumes bit for bit."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.data.loader import LeftOut
from mobilemoe.errors import MachineError, TrainError
from mobilemoe.files import hold_folder, new_folder, read_json, write_json
from mobilemoe.train import checkpointing
from mobilemoe.train.device import settle
from mobilemoe.train.health import REPORT_FILE, write_report
from mobilemoe.train.interrupts import StopRequest, interrupts
from mobilemoe.train.kept_recipe import RECIPE_FILE, refuse_other
from mobilemoe.train.metrics import (
    DRAWN,
    METRICS_FILE,
    MetricsLog,
    ProgressReport,
    draw_loss,
    draw_routing,
    drawing,
    last_validation,
    read_metrics,
)
from mobilemoe.train.parallel.distributed import World, join
from mobilemoe.train.parallel.sharded_checkpoint import ShardedSaver
from mobilemoe.train.pins import pin
from mobilemoe.train.recipe import Recipe
from mobilemoe.train.setup import set_up
from mobilemoe.train.step import Stepper
from mobilemoe.train.validation import summary


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended: steps done, last loss in nats per token, and the newest checkpoint's folder.

    `left_out` says in words which rows of the data held nothing to learn; it is empty if all did. `validation` is what
    the metrics say of the run's last validation (see `Validation.row`); None if there was none.
    """

    steps: int
    loss: float
    finished: bool
    checkpoint: Path
    left_out: str = ""
    validation: dict[str, Any] | None = None


def train(recipe: Recipe, run: Path) -> Result:
    """Trains by `recipe` in the folder `run`; a run that is there already is resumed.

    An interrupt (Ctrl-C, SIGTERM, SIGHUP) saves and returns with finished=False. Raises any MobileMoEError.
    """
    drawing()  # so that a missing package is found now and not after training
    _keep_allocations()
    with join(recipe) as world, _held(run, world):
        recipe = _agreed(recipe, run, world)
        refuse_other(recipe, run)
        trainer = Trainer(recipe, run, world)
        with interrupts(insistent=world.size == 1) as stop:
            return trainer.run_steps(stop)


class Trainer:
    """A run that is set up from a recipe whose precision is settled; `run_steps` trains it."""

    def __init__(self, recipe: Recipe, run: Path, world: World) -> None:
        self.recipe, self.run, self.train, self.world = recipe, run, recipe.train, world
        self.setup = set_up(recipe, world)
        self.saver = ShardedSaver() if world.size > 1 else None
        setup = self.setup
        self.stepper = Stepper(setup.model, setup.optimizer, recipe, world, setup.domains, setup.teacher)

    def run_steps(self, stop: StopRequest) -> Result:
        """Steps until the recipe's end or until `stop` is made; saves every `checkpoint_every` steps and at the end."""
        train, loader, world = self.train, self.setup.loader, self.world
        state = self._begin()
        step = state["step"]
        tokens, loss = state["tokens"], state["loss"]
        report = _Report(self.run, train.steps, step, self.setup.notes) if world.is_first else None
        unread: list[dict[str, Any]] = []  # what is known of steps whose numbers are still on the device
        began = time.monotonic()
        try:
            fault = self._data_fault(step)
            stopping = world.any(stop.made or fault is not None)
            while step < train.steps and not stopping:
                if not unread:
                    began = time.monotonic()
                begins = loader.state_dict()["positions"]
                self.stepper.step(next(loader), step, begins)
                step, tokens = step + 1, tokens + train.batch_size * train.sequence_length
                unread.append({"step": step, "tokens": tokens, "rows_left_out": loader.left_out.rows})
                fault = self._data_fault(step)
                # Asked once, so that no step ends the loop unsaved, and all processes save together.
                stopping = world.any(stop.made or fault is not None)
                saves = step % train.checkpoint_every == 0 or step == train.steps or stopping
                if self.stepper.waits or len(unread) == train.log_every or saves or self._validates(step):
                    loss = self._log(report, unread, began)
                if saves:
                    self._save(step, tokens, loss)
            if stopping and world.any(fault is not None):
                if fault is not None:
                    raise fault
                world.wait()  # until the process that has the error ends this one (parallel/rank_failure.py)
        finally:
            loader.close()
            if self.saver is not None:  # also after an error: what was being saved is worth having
                self.saver.wait(None if report is None else report.say)
            if report is not None:
                report.close()
        folders = step_folders(self.run)
        if not folders:
            raise TrainError(f"{self.run} was interrupted before its first step: nothing is saved")
        validation = None
        if world.is_first:
            rows = read_metrics(self.run / METRICS_FILE, *DRAWN)
            validation = last_validation(rows)
            draw_loss(rows, self.run / "loss.png")
            if (self.run / REPORT_FILE).exists():
                draw_routing(read_json(self.run / REPORT_FILE, TrainError), self.run / "router.png")
        return Result(step, loss, step >= train.steps, folders[-1], str(loader.left_out), validation)

    def _validates(self, step: int) -> bool:
        """Whether the model is validated as it is after `step` steps."""
        every = self.train.validate_every
        return self.setup.validation is not None and (step % every == 0 or step == self.train.steps)

    def _log(self, report: _Report | None, unread: list[dict[str, Any]], began: float) -> float:
        """Writes the metrics of the `unread` steps, the first of which began at the time `began`, and empties the list.

        Validates after the last of them if it is time to. Returns the loss of the last step. Each row has the mean
        speed of all these steps, since a GPU does not say when each of them ended.
        """
        speed, loss = 0.0, math.nan
        tokens = len(unread) * self.train.batch_size * self.train.sequence_length
        for known, row in zip(unread, self.stepper.read(), strict=True):
            speed = speed or tokens / (time.monotonic() - began)  # the first row has waited for all steps
            loss = row["loss"]
            row |= {**known, "tokens_per_second": speed}
            if known is unread[-1] and self.setup.validation is not None and self._validates(known["step"]):
                rows = self.train.micro_batch_size or self.train.batch_size // self.world.size
                row["validation"] = self.setup.validation.row(self.setup.model, self.world, self.train.precision, rows)
            if report is not None:
                report.write(row, self.setup.loader.left_out)
        unread.clear()
        return loss

    def _data_fault(self, step: int) -> BaseException | None:
        """The error that reading the batch after step `step` gives, if it gives one; None after the last step."""
        return self.setup.loader.fault() if step < self.train.steps else None

    def _begin(self) -> dict[str, Any]:
        """Restores the newest checkpoint if there is one, and returns its state; prepares the folder of the run."""
        if self.world.is_first:
            self.run.mkdir(parents=True, exist_ok=True)  # for runs of a sweep, which come here without `train`
            checkpointing.remove_leftovers(self.run)
        self.world.wait()
        state = checkpointing.restore(self.run, self.setup.model, self.setup.optimizer)
        if state is not None:
            self.setup.loader.load_state_dict(state["loader"])
            self.stepper.guard.load_state_dict(state["guard"])
        if self.world.is_first and (state is None or state["step"] < self.train.steps):
            write_json(self.run / RECIPE_FILE, self.recipe.model_dump())
        return state or {"step": 0, "tokens": 0, "loss": math.nan}

    def _save(self, step: int, tokens: int, loss: float) -> None:
        setup = self.setup
        state = {"tokens": tokens, "loss": loss, "loader": setup.loader.state_dict()}
        state["guard"] = self.stepper.guard.state_dict()
        draft = checkpointing.Draft(
            run=self.run,
            step=step,
            config=dataclasses.replace(setup.model.config, expert_group_axis=None),
            state=checkpointing.state_of(setup.model, setup.optimizer) | state,
            tokenizer_files=setup.tokenizer_files,
            template=setup.template,
            keep=self.train.keep_checkpoints,
        )
        save = checkpointing.save if self.saver is None else self.saver.save
        try:
            save(draft, checkpointing.tensors_of(setup.model, setup.optimizer))
            if self.stepper.health is not None:
                report = self.stepper.health.report()
                if self.world.is_first:
                    write_report(self.run, step, report)
        except OSError as fault:
            raise MachineError(
                f"the checkpoint of step {step} cannot be written to {self.run}: {fault.strerror}; those before it "
                "stand: make room and start the same command again"
            ) from None


@contextmanager
def _held(run: Path, world: World) -> Iterator[None]:
    """Locks the folder of a run. Raises TrainError in every process if another training has it locked."""
    with ExitStack() as held:
        fault: Exception | None = None
        if world.is_first:
            try:
                held.enter_context(new_folder(run))
                held.enter_context(hold_folder(run, TrainError))
            except (OSError, TrainError) as caught:
                fault = caught
        if world.any(fault is not None):
            raise fault or TrainError(f"the first process cannot work in {run}")
        yield


def _agreed(recipe: Recipe, run: Path, world: World) -> Recipe:
    """`recipe` with its precision and its commits settled by the first process: another might find others."""
    return world.first(pin(settle(recipe, world.device, run), run) if world.is_first else recipe)


class _Report:
    """Reports the steps of a run: in metrics.jsonl, and as progress on standard error."""

    def __init__(self, run: Path, steps: int, step: int, notes: tuple[str, ...]) -> None:
        self._steps, self._first, self._started = steps, step, time.monotonic()
        self._log, self._progress = MetricsLog(run / METRICS_FILE, step), ProgressReport(steps, step)
        self._told = False
        for note in notes:
            self._progress.say(f"note: {note}")

    def write(self, row: dict[str, Any], left_out: LeftOut) -> None:
        self._log.write(row)
        if left_out.rows and not self._told:
            self._progress.say(f"note: {left_out}")
            self._told = True
        seconds_each = (time.monotonic() - self._started) / (row["step"] - self._first)
        self._progress.update(row, seconds_each * (self._steps - row["step"]))
        if "validation" in row:
            self._progress.say(f"step {row['step']}: {summary(row['validation'])}")
            self._progress.say(f"  sample: {json.dumps(row['validation']['sample'], ensure_ascii=False)}")

    def say(self, sentence: str) -> None:
        self._progress.say(sentence)

    def close(self) -> None:
        self._progress.close()
        self._log.close()


def _keep_allocations() -> None:
    """Tells glibc to keep freed memory for the life of the process; without glibc nothing happens.

    Returning activations to the system in every step cost a fifth of the time in page faults.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mmap_threshold, trim_threshold = -3, -1  # names that malloc.h gives these numbers
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)
