"""One of four processes that fails ends all of them, wherever it is, within seconds and with its sentence."""

import os
import random
import re
import socket
import subprocess
import sys
import time

import pytest

pytest_plugins = ["train_runs"]

CODE = """
import os, pkgutil, sys
from mobilemoe.cli.main import main
from mobilemoe.errors import TrainError
from mobilemoe.data import loader

holder, name, call, kind, failing = (sys.argv.pop(1) for _ in range(5))
loader.READ_AHEAD = 8
holder = pkgutil.resolve_name("mobilemoe." + holder)
real, calls = getattr(holder, name), []

def fails(*args, **kwargs):
    calls.append(0)
    if len(calls) == int(call):
        raise {"TrainError": TrainError, "ValueError": ValueError}[kind]("the roof is leaking")
    return real(*args, **kwargs)

if os.environ["RANK"] == failing:
    setattr(holder, name, fails)
main()
"""

PLACES = {
    "data": ("data.loader:PackedLoader", "__next__"),
    "forward pass": ("train.step", "cross_entropy_sum"),
    "exchange of tokens": ("train.parallel.expert_parallel", "_gathered"),
    "clipping": ("train.step", "clip_gradients"),
    "optimizer": ("train.step:Stepper", "_update"),
    "load balance": ("train.balance", "move_biases"),
    "validation": ("train.validation", "nats_by_domain"),
    "saving": ("train.parallel.sharded_checkpoint:ShardedSaver", "save"),
    "writing": ("train.parallel.sharded_checkpoint", "write_safetensors"),
}


@pytest.mark.parametrize("place", PLACES)
def test_all_end_with_the_sentence_of_the_one_that_failed(place, recipe_path, tmp_path):
    draw = random.Random(place)
    failing, call, kind = draw.randrange(4), draw.randint(1, 3), draw.choice(["TrainError", "ValueError"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ["batch_size=4", "steps=1000", "checkpoint_every=3", "validate_every=4", "validate_tokens=64"]
    options = ["--out", str(tmp_path / "run"), "--json", "--set", "distributed.expert_parallel=2"]
    options += [word for setting in settings for word in ("--set", f"train.{setting}")]
    arguments = [*PLACES[place], str(call), kind, str(failing)]
    command = [sys.executable, "-c", CODE, *arguments, "train", str(recipe_path), *options]
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
        assert re.search(rf"mobilemoe: process {failing} (stopped the training|could not write)", text)
        assert "the roof is leaking" in text
