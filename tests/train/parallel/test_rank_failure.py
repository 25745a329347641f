"""One of four processes that fails ends all of them, wherever it is, within seconds and with its sentence."""

import os
import socket
import subprocess
import sys
import time

import pytest

pytest_plugins = ["train_runs"]

CODE = """
import os, sys
from pathlib import Path
from mobilemoe.cli.main import main
from mobilemoe.errors import TrainError
from mobilemoe.train import balance, step
from mobilemoe.data import loader

module, name, kind, failing = (sys.argv.pop(1) for _ in range(4))
loader.READ_AHEAD = 8
module = {"step": step, "balance": balance}[module]
real, calls = getattr(module, name), []

def fails_the_second_time(*args, **kwargs):
    calls.append(0)
    if len(calls) == 2:
        raise {"TrainError": TrainError, "ValueError": ValueError}[kind]("the roof is leaking")
    return real(*args, **kwargs)

if os.environ["RANK"] == failing:
    setattr(module, name, fails_the_second_time)
main()
"""


@pytest.mark.parametrize(
    ("place", "kind", "failing"),
    [
        (("step", "cross_entropy_sum"), "TrainError", 0),
        (("step", "clip_gradients"), "ValueError", 2),
        (("balance", "move_biases"), "TrainError", 3),
    ],
)
def test_all_end_with_the_sentence_of_the_one_that_failed(place, kind, failing, recipe_path, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--out", str(tmp_path / "run"), "--set", "train.batch_size=4", "--set", "train.steps=1000", "--json"]
    command = [sys.executable, "-c", CODE, *place, kind, str(failing), "train", str(recipe_path), *options]
    environment = os.environ | {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(4)
    ]
    try:
        said = processes[failing].communicate(timeout=300)[1]
        began = time.monotonic()
        others = [process.communicate(timeout=60)[1] for process in processes if process is not processes[failing]]
        assert time.monotonic() - began < 30  # 4 on an idle machine
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 1 for process in processes)
    assert "the roof is leaking" in said
    for text in others:
        assert f"mobilemoe: process {failing} stopped the training: " in text
        assert "the roof is leaking" in text
