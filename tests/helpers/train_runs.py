"""What the tests of training share: a tiny recipe, its runs as fixtures (this is a pytest plugin), and comparisons."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mobilemoe.checkpoint import Checkpoint, SafetensorsFile
from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.data import loader as loader_module
from mobilemoe.train import loop as loop_module
from mobilemoe.train.loop import train
from mobilemoe.train.metrics import read_metrics
from mobilemoe.train.recipe import TrainTable, load_recipe
from mobilemoe.train.step import Stepper
from recipe_text import data_table

RECIPE = f"""
name = "tiny"
tokenizer.path = "nano"

[model]
preset = "micro"

[model.changes]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 16
intermediate_size_mlp = 32
num_local_experts = 6
num_experts_per_tok = 2

{data_table({"books": 0.6, "chat": 0.4})}
[train]
steps = 10
batch_size = 2
sequence_length = 32
learning_rate = 1e-2
warmup_steps = 3
balance_rate = 5e-3
precision = "fp32"
threads = 1
checkpoint_every = 4
"""


@pytest.fixture
def one_thread():
    """Two threads on a busy machine wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def quick():
    """One thread, no read-ahead beyond what a few steps need, no pictures."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader_module, "READ_AHEAD", 8)
        patch.setattr(loop_module, "draw_loss", lambda rows, path: None)
        patch.setattr(loop_module, "draw_routing", lambda report, path: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def recipe_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def recipe(recipe_path):
    """A function that loads the recipe with the overrides that it is given."""
    return lambda *overrides: load_recipe(recipe_path, overrides)


@pytest.fixture(scope="session")
def unbroken(recipe, tmp_path_factory):
    """The run folder of a recipe that nothing stopped; made once for each, whichever file asks. Not to be changed."""
    made: dict[str, Path] = {}

    def run(*overrides: str) -> Path:
        key = repr(overrides)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("unbroken") / "run"
            assert train(recipe(*overrides), made[key]).finished
        return made[key]

    return run


@pytest.fixture
def stop_in(monkeypatch):
    """`stop_in(n)`: the next run is interrupted during step n, counted from 1."""

    def arrange(number: int, kind: signal.Signals = signal.SIGINT) -> None:
        def step(self, batch, at, begins):
            if at + 1 == number:
                monkeypatch.undo()
                signal.raise_signal(kind)
            return real(self, batch, at, begins)

        real = Stepper.step
        monkeypatch.setattr(Stepper, "step", step)

    return arrange


def table(**changes) -> TrainTable:
    return TrainTable(**{"steps": 100, "batch_size": 4, "sequence_length": 8, "learning_rate": 0.1} | changes)


def rows(run: Path) -> list[dict]:
    """The metrics without the one that a clock makes."""
    return [{key: row[key] for key in row if key != "tokens_per_second"} for row in read_metrics(run / "metrics.jsonl")]


def assert_same(run: Path, other: Path) -> None:
    """The newest checkpoints agree in every byte of every file, and the metrics in every digit."""
    ours, theirs = step_folders(run)[-1], step_folders(other)[-1]
    assert ours.name == theirs.name
    names = sorted(path.name for path in theirs.iterdir())
    assert sorted(path.name for path in ours.iterdir()) == names
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert rows(run) == rows(other)


def assert_whole(run: Path) -> None:
    """Every checkpoint that can be seen is complete and unharmed."""
    for folder in step_folders(run):
        with Checkpoint.open(folder) as checkpoint, SafetensorsFile(folder / "optimizer.safetensors") as optimizer:
            assert set(checkpoint.verify().values()) == {True}
            assert optimizer.verify() is True
        assert json.loads((folder / "state.json").read_text())["step"] == int(folder.name.removeprefix("step-"))
        assert (folder / "tokenizer.json").stat().st_size > 0


def leftovers(run: Path) -> list[str]:
    return [path.name for path in (run / "checkpoints").glob(".*")]


# Reads JSON lines: forks that many processes, which train together over gloo, and prints how each ended.
PROCESSES = """
import json, os, signal, socket, sys
from pathlib import Path
import torch._dynamo, torch.distributed.fsdp  # what torch would import later, once for all
from mobilemoe.data import loader
from mobilemoe.data.prefetch import Prefetcher
from mobilemoe.errors import DataError, MobileMoEError
from mobilemoe.train.parallel import sharded_checkpoint
from mobilemoe.train import loop
from mobilemoe.train.recipe import load_recipe
from mobilemoe.train.step import Stepper

loader.READ_AHEAD = 8
loop.draw_loss = lambda rows, path: None
loop.draw_routing = lambda report, path: None

def full_disk(*_):
    raise OSError(28, "No space left on device")

def work(rank, order):
    step = Stepper.step
    def stepped(self, batch, at, begins):
        if at + 1 == order["fault_at"] and rank == order["processes"] - 1:
            if order["fault"] == "SIGTERM":
                signal.raise_signal(signal.SIGTERM)
            elif order["fault"] == "full disk":
                sharded_checkpoint._write_arrays = full_disk
            elif order["fault"] == "no data":
                Prefetcher.fault = lambda self: DataError("the mount is gone")
        return step(self, batch, at, begins)
    Stepper.step = stepped
    make = Stepper.__init__
    def made(self, *arguments):
        make(self, *arguments)
        self.waits = self.waits and not order["queued"]
    Stepper.__init__ = made
    try:
        result = loop.train(load_recipe(order["recipe"], tuple(order["overrides"])), Path(order["run"]))
        return {"steps": result.steps, "finished": result.finished, "checkpoint": result.checkpoint.name}
    except MobileMoEError as fault:
        return {"error": str(fault)}

for line in sys.stdin:
    order = json.loads(line)
    # Kept until all have ended, so that nobody else is given the port; without listening, the first process may use it.
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        children = []
        for rank in range(order["processes"]):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(order["processes"])}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(place.getsockname()[1])}
                os.write(writing, json.dumps(work(rank, order)).encode())
                os._exit(0)
            os.close(writing)
            children.append((child, reading))
        ends = []
        for child, reading in children:
            with os.fdopen(reading) as pipe:
                said = pipe.read()
            os.waitpid(child, 0)
            ends.append(json.loads(said or "null"))
    print(json.dumps(ends), flush=True)
"""


@pytest.fixture(scope="session")
def together(recipe_path):
    """`together(run, n, *overrides)` trains with n processes; `fault` befalls the last one in step `fault_at`, and
    `queued` steps are taken as on a GPU.

    Returns how each process ended.
    """
    command = [sys.executable, "-c", PROCESSES]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call(
        run: Path, processes: int, *overrides: str, fault: str = "", fault_at: int = 0, queued: bool = False
    ) -> list[dict]:
        order = {"recipe": str(recipe_path), "run": str(run), "processes": processes, "overrides": overrides}
        parent.stdin.write(json.dumps(order | {"fault": fault, "fault_at": fault_at, "queued": queued}) + "\n")
        parent.stdin.flush()
        return json.loads(parent.stdout.readline())

    yield call
    parent.stdin.close()
    parent.wait()
    parent.stdout.close()
