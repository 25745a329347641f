"""The promise of train: whatever kills a run, it resumes bit for bit, and no partial checkpoint is ever seen."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.train import checkpointing
from mobilemoe.train.loop import train
from mobilemoe.train.metrics import read_metrics
from train_runs import assert_same, assert_whole, leftovers

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")

PROCESS = """
import sys
from pathlib import Path
from mobilemoe.data import loader
from mobilemoe.train import loop
from mobilemoe.train.recipe import load_recipe
loader.READ_AHEAD = 8
recipe, run = load_recipe(sys.argv[1], tuple(sys.argv[3:])), Path(sys.argv[2])
"""
# Steps that take a fifth of a second, so that a signal comes before the last one, however busy the machine is.
SLOWLY = """
import time
from mobilemoe.train.step import Stepper
step = Stepper.step
def slowly(*args):
    time.sleep(0.2)
    return step(*args)
Stepper.step = slowly
"""
# For each number read: a child that trains, and kills itself before its n-th change to the disk (0: never).
CHILDREN = (
    PROCESS
    + """
import os, signal
import torch._dynamo  # what torch would import at the first step, once for all children
def mined(change):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*args, **kwargs)
    return call
for line in sys.stdin:
    left = int(line)
    child = os.fork()
    if child == 0:
        for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
            setattr(os, name, mined(getattr(os, name)))
        loop.train(recipe, run)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()  # until then its number is its own, and safe to kill
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
)


class Children:
    """Training processes, one after another, forked from one that has imported everything."""

    def __init__(self, *args: str) -> None:
        command = [sys.executable, "-c", CHILDREN, *args]
        self._parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.stdin.close()
        self._parent.wait()
        self._parent.stdout.close()

    def start(self, kill_before_change: int = 0) -> int:
        self._parent.stdin.write(f"{kill_before_change}\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def status(self) -> int:
        """Waits for the child's end."""
        self._parent.stdin.write("\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def test_kill_9_at_any_moment_changes_nothing_in_the_end(recipe, recipe_path, unbroken, tmp_path):
    overrides = ("train.steps=60", "train.checkpoint_every=2")
    run, chance = tmp_path / "run", random.Random(5)
    reference = unbroken(*overrides)
    seen_leftovers = 0
    with Children(str(recipe_path), str(run), *overrides) as children:
        # Before the n-th change to the disk: in the middle of writing, of renaming, of removing.
        for change in [1, 2, 7, 12, 30, 44, 48, *(chance.randrange(1, 110) for _ in range(5))]:
            children.start(change)
            assert children.status() == -signal.SIGKILL
            assert_whole(run)
            seen_leftovers += len(leftovers(run))
        assert step_folders(run)[-1].name < "step-00000040"
        # At any time: while it reads, computes, or whatever it does then. A fast machine may be done before the last.
        for _ in range(8):
            before = (run / "metrics.jsonl").stat().st_mtime_ns
            child = children.start()
            if chance.random() < 0.7:
                wait_for(lambda before=before: (run / "metrics.jsonl").stat().st_mtime_ns != before)
            time.sleep(chance.uniform(0, 0.15))
            os.kill(child, signal.SIGKILL)
            assert children.status() in (-signal.SIGKILL, 0)
            assert_whole(run)
        children.start()
        assert children.status() == 0
    assert seen_leftovers > 0
    assert leftovers(run) == []
    assert_same(run, reference)


def test_an_interrupted_process_saves_exits_with_0_and_goes_on(recipe, recipe_path, unbroken, tmp_path):
    overrides, run = ("train.steps=60", "train.checkpoint_every=2"), tmp_path / "run"
    script = PROCESS + SLOWLY + "import json\nprint(json.dumps(loop.train(recipe, run).steps))"
    arguments = [str(recipe_path), str(run), *overrides, "train.checkpoint_every=1000"]
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    wait_for(lambda: len(read_metrics(run / "metrics.jsonl")) >= 3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    steps = json.loads(out)
    assert 3 <= steps < 60
    assert [path.name for path in step_folders(run)] == [f"step-{steps:08d}"]
    assert train(recipe(*overrides), run).finished
    assert_same(run, unbroken(*overrides))


def test_an_old_checkpoint_is_out_of_sight_before_it_is_taken_apart(recipe, tmp_path, monkeypatch):
    class PowerCut(BaseException):
        pass

    def half(folder):
        (Path(folder) / "model.safetensors").unlink()
        raise PowerCut

    run = tmp_path / "run"
    monkeypatch.setattr(checkpointing.shutil, "rmtree", half)
    with pytest.raises(PowerCut):
        train(recipe("train.checkpoint_every=2"), run)
    monkeypatch.undo()
    assert len(leftovers(run)) == 1
    assert_whole(run)


def test_only_our_own_leftovers_are_cleaned_away(recipe, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    ours = [".step-00000002.ab_c12.part", ".step-00000004.old.part"]
    others = [".mine.part", ".step-2.x.part", "step-00000002.part", ".step-00000002.part", "notes"]
    for name in ours + others:
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "file").write_text("x")
    train(recipe("train.steps=1"), tmp_path / "run")
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted([*others, "step-00000001"])
