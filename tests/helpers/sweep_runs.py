"""What the tests of sweeps share: a grid of four tiny runs, and a process that forks sweeps whose workers it forks too,
so that torch is imported once for all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mobilemoe.sweep.grid import load_grid
from mobilemoe.sweep.table import read_rows
from places import HELDOUT
from recipe_text import data_table

GRID = f"""
name = "tiny"
tokenizer.path = "nano"
model.preset = "micro"

{data_table({"books": 0.6, "code": 0.4})}
[train]
steps = 4
batch_size = 2
sequence_length = 32
learning_rate = 1e-2
warmup_steps = 1
schedule = "linear"
precision = "fp32"
checkpoint_every = 2

[heldout]
path = {json.dumps(str(HELDOUT))}
tokens = 256

[blocks.all]
sizes = [{{ hidden_size = 32, layers = 1 }}]
tokens = [256, 512]
experts = [1, 2]
granularity = [2]
"""

# Reads JSON lines: forks a sweep for each, and prints its process, its events, and at last how it ended. A sweep waits
# for an empty line after each event, so that a signal reaches it before it goes on.
PROCESS = """
import json, os, signal, sys, threading, time
from pathlib import Path
import torch._dynamo  # what torch would import at the first step, once for all
from mobilemoe.data import loader
from mobilemoe.errors import MobileMoEError
from mobilemoe.sweep import worker_pool
from mobilemoe.sweep import worker
from mobilemoe.sweep.grid import load_grid
from mobilemoe.train.step import Stepper

torch.set_num_threads(1)
loader.READ_AHEAD = 8

class Forked:
    def __init__(self, command, stderr, **_):
        (stdin, kept), (self.stdout, stdout) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for number, file in enumerate((stdin, stdout, stderr.fileno())):
                os.dup2(file, number)
            os.closerange(3, 100)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
            threading.Thread(target=worker._stop_with_parent, daemon=True).start()
            module = command.index("mobilemoe.sweep.worker")
            os._exit(worker.work(Path(command[module + 1]), command[module + 2], command[module + 3:]))
        os.close(stdin)
        os.close(stdout)
        self.stdout = open(self.stdout, "rb", buffering=0)
    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
    def send_signal(self, number):
        os.kill(self.pid, number)
    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

def say(value):
    print(json.dumps(value), flush=True)

def change_workers(slow, dies):
    step, train_run = Stepper.step, worker.train_run
    def slowly(*args):
        time.sleep(slow)
        return step(*args)
    def dying(training, run, *args):
        if run.id in dies:
            signal.raise_signal(dies[run.id])
        return train_run(training, run, *args)
    Stepper.step, worker.train_run = slowly, dying

def run(order):
    workers = []
    change_workers(order["slow"], order["dies"])
    class Counted(Forked):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            workers.append(self.pid)
    worker_pool.subprocess.Popen = Counted
    options = {"only": tuple(order["only"]), "processes": order["processes"]}
    def hear(event, so_far):
        say(event)
        sys.stdin.readline()
    hear({"event": "begun", "process": os.getpid()}, None)
    try:
        grid = load_grid(order["grid"], tuple(order["overrides"]))
        summary = worker_pool.sweep(grid, Path(order["out"]), on_event=hear, **options)
        return {"finished": summary.finished, "failed": summary.failed, "left": summary.left, "workers": len(workers)}
    except MobileMoEError as fault:
        return {"error": str(fault), "workers": len(workers)}

for line in sys.stdin:
    if not line.strip():
        continue  # a sweep that was killed did not take it
    child = os.fork()
    if child == 0:
        say({"event": "end"} | run(json.loads(line)))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) < 0:
        say({"event": "end", "killed": True})
"""


@pytest.fixture(scope="session")
def grid_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "grid.toml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="session")
def forked_sweep(grid_path):
    """`forked_sweep(out, *overrides)` runs a sweep and returns how it ended, with its events under "events".

    `hear` is called with each event, of which the first tells the sweep's process. Each step takes `slow` seconds more,
    and a worker that begins one of the runs of `dies` dies of the signal given there.
    """
    command = [sys.executable, "-c", PROCESS]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call(
        out: Path,
        *overrides: str,
        processes: int = 1,
        only: tuple[str, ...] = (),
        slow: float = 0.0,
        dies: dict[str, int] | None = None,
        hear=lambda event: None,
    ):
        order = {"grid": str(grid_path), "out": str(out), "overrides": overrides, "processes": processes, "only": only}
        parent.stdin.write(json.dumps(order | {"slow": slow, "dies": dies or {}}) + "\n")
        parent.stdin.flush()
        events = []
        while (event := json.loads(parent.stdout.readline()))["event"] != "end":
            hear(event)
            events.append(event)
            parent.stdin.write("\n")
            parent.stdin.flush()
        return event | {"events": [event for event in events if event["event"] != "begun"]}

    yield call
    parent.stdin.close()
    parent.wait()
    parent.stdout.close()


CLOCK = ("seconds", "tokens_per_second", "code")  # columns that another call may fill otherwise


@pytest.fixture(scope="module")
def grid(grid_path):
    return lambda *overrides: load_grid(grid_path, overrides)


def losses(out: Path) -> dict[str, dict[str, str]]:
    """The rows of runs.csv by id, without what a clock says."""
    rows = read_rows(out / "runs.csv")
    return {row["id"]: {name: row[name] for name in row if name not in CLOCK} for row in rows}
