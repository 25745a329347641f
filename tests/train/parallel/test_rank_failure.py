"""One of four processes that fails ends all of them, wherever it is, within seconds and with its sentence."""

import json
import random
import re
import signal
import subprocess
import sys

import pytest

pytest_plugins = ["train_runs"]

# Reads JSON lines: forks four processes, of which one fails, and prints how and when each ended and what it said.
CODE = """
import ctypes, json, os, pkgutil, socket, sys, tempfile, time
import torch._dynamo, torch.distributed.fsdp  # what torch would import later, once for all
from mobilemoe.cli.main import main
from mobilemoe.data import loader
from mobilemoe.errors import TrainError
from mobilemoe.train import loop
from mobilemoe.train.parallel import rank_failure

rank_failure.GRACE *= 2  # on a busy machine a process that is about to answer would be killed
loader.READ_AHEAD = 8
os.fsync = lambda descriptor: None  # for which a busy disk takes a minute, and meanwhile nothing ends a process

def work(rank, order, port, said):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(said.fileno(), 2)
    sys.argv[1:] = order["arguments"]
    if rank in (order["failing"], order.get("deaf")):
        holder, name, calls = pkgutil.resolve_name("mobilemoe." + order["holder"]), order["name"], []
        real = getattr(holder, name)

        def fails(*args, **kwargs):
            calls.append(0)
            if len(calls) == order["call"]:
                if rank == order.get("deaf"):
                    ctypes.PyDLL(None).sleep(1000)  # and no other thread of this process runs
                raise {"TrainError": TrainError, "ValueError": ValueError}[order["kind"]]("the roof is leaking")
            return real(*args, **kwargs)

        setattr(holder, name, fails)
    main()

for line in sys.stdin:
    order, children = json.loads(line), {}
    said = [tempfile.NamedTemporaryFile() for rank in range(4)]
    # Kept until all have ended, so that nobody else is given the port; without listening, the first process may use it.
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        for rank in range(4):
            child = os.fork()
            if child == 0:
                work(rank, order, place.getsockname()[1], said[rank])
            children[child] = rank
        ends = [None] * 4
        while children:
            child, status = os.wait()
            ends[children.pop(child)] = (os.waitstatus_to_exitcode(status), time.monotonic())
    texts = [open(file.name).read() for file in said]
    print(json.dumps([(*end, text) for end, text in zip(ends, texts)]), flush=True)
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
    "writing": ("train.parallel.sharded_checkpoint", "_write_arrays"),
}


@pytest.fixture(scope="module")
def four():
    """Calls of CODE: how four processes ended."""
    with subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:

        def call(**order):
            it.stdin.write(json.dumps(order) + "\n")
            it.stdin.flush()
            return json.loads(it.stdout.readline())

        yield call
        it.stdin.close()


@pytest.mark.parametrize("place", PLACES)
def test_all_end_with_the_sentence_of_the_one_that_failed(place, four, recipe_path, tmp_path):
    draw, (holder, name) = random.Random(place), PLACES[place]
    failing, call, kind = draw.randrange(4), draw.randint(1, 3), draw.choice(["TrainError", "ValueError"])
    arguments = ["train", str(recipe_path), "--out", str(tmp_path / "run"), "--json"]
    changes = ["batch_size=4", "steps=1000", "checkpoint_every=3", "validate_every=4", "validate_tokens=64"]
    for entry in ("distributed.expert_parallel=2", "data.holdout=0.2", *(f"train.{change}" for change in changes)):
        arguments += ["--set", entry]
    ends = four(failing=failing, holder=holder, name=name, call=call, kind=kind, arguments=arguments)
    assert [status for status, _, _ in ends] == [1] * 4, ends
    times = [at for _, at, _ in ends]
    assert max(times) - times[failing] < 60  # 4 on an idle machine
    for rank, (_, _, said) in enumerate(ends):
        last = said.splitlines()[-1]
        if rank == failing and kind == "TrainError":
            assert last == "mobilemoe: the roof is leaking" or "could not write" in last
        else:
            assert re.fullmatch(rf"mobilemoe: process {failing} .*the roof is leaking.*", last)


def test_a_process_whose_threads_cannot_run_is_ended_by_the_one_that_failed(four, recipe_path, tmp_path):
    arguments = ["train", str(recipe_path), "--out", str(tmp_path / "run"), "--json", "--set", "train.batch_size=4"]
    place = {"holder": "train.step:Stepper", "name": "_update", "call": 2, "kind": "TrainError"}
    ends = four(failing=1, deaf=2, **place, arguments=arguments)
    assert [status for status, _, _ in ends] == [1, 1, -signal.SIGKILL, 1], ends
    times = [at for _, at, _ in ends]
    assert max(times) - min(times) < 60  # 3 on an idle machine
    assert all("the roof is leaking" in said for rank, (_, _, said) in enumerate(ends) if rank != 2)
