"""The promise of expert parallelism: experts that live in several processes learn what they would in one."""

import subprocess
import sys

import pytest

from mobilemoe.checkpoint.run_folder import step_folder
from parallel_runs import STEPS, assert_learnt_the_same, assert_same_weights
from train_runs import assert_whole

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")


def test_experts_in_two_processes_learn_what_they_do_in_one(together, unbroken, tmp_path):
    together(tmp_path / "run", 2, *STEPS, "distributed.expert_parallel=2")
    assert_learnt_the_same(tmp_path / "run", unbroken(*STEPS))
    assert_whole(tmp_path / "run")


@pytest.mark.parametrize("replicas", [1, 2])
def test_parallel_experts_may_be_sharded_or_replicated_too_and_go_on(replicas, together, unbroken, tmp_path):
    run, short = tmp_path / "run", ("train.steps=6", "train.batch_size=4")
    overrides = (*short, "distributed.expert_parallel=2", f"distributed.replicate={replicas}")
    assert not together(run, 4, *overrides, fault="SIGTERM", fault_at=3)[0]["finished"]
    assert together(run, 4, *overrides)[0]["finished"]
    assert_learnt_the_same(run, unbroken(*short))
    assert_same_weights(step_folder(run, 6), step_folder(unbroken(*short), 6))


def test_experts_that_cannot_be_split_evenly_are_refused(together, tmp_path):
    changed = "model.changes.num_local_experts=5"
    ends = together(tmp_path / "run", 2, *STEPS, changed, "distributed.expert_parallel=2")
    assert ends == [{"error": "distributed.expert_parallel is 2, which does not divide the 5 experts"}] * 2


# Forks that many processes, which compute random pairs together; each compares its results with those of one process.
EXCHANGE = """
import os, sys, tempfile
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from mobilemoe.model.experts import Routed, grouped_experts, loop_experts
from mobilemoe.train.parallel.expert_parallel import ROOM, Exchange

size, load = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
tokens, active, experts, hidden, width = 24, 2, 8, 16, 8
each = experts // size
random = torch.Generator().manual_seed(0)
x, weights = torch.randn(size * tokens, hidden, generator=random), torch.rand(size * tokens, active, generator=random)
gate_up = torch.randn(experts, hidden, 2 * width, generator=random)
down = torch.randn(experts, width, hidden, generator=random)
scores = torch.rand(size * tokens, experts, generator=random)
if load == "all to one process":
    scores[:, -each:] += 1
elif load == "nothing to one process":
    scores[:, :each] -= 1
elif load == "the tokens of one process to one process":
    scores[:tokens, -each:] += 1
chosen = scores.argsort(dim=1, descending=True)[:, :active]
leaves = [tensor.requires_grad_() for tensor in (x, weights, gate_up, down)]
wanted = loop_experts(Routed(x, chosen, weights, gate_up, down))
wanted_grads = torch.autograd.grad(wanted.square().sum(), leaves)

def work(rank, store):
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    mine, held = slice(rank * tokens, (rank + 1) * tokens), slice(rank * each, (rank + 1) * each)
    parts = [x[mine], weights[mine], gate_up[held], down[held]]
    x_ND, weights_NA, gate_up_part, down_part = parts = [part.detach().clone().requires_grad_() for part in parts]
    at_once = []

    def compute(x, chosen, weights, pairs):
        at_once.append(pairs)
        return grouped_experts(Routed(x, chosen, weights, gate_up_part, down_part, pairs=pairs))

    exchange = Exchange(init_device_mesh("cpu", (size,)), each)
    y_ND = exchange(compute, x_ND, chosen[mine], weights_NA)
    torch.testing.assert_close(y_ND, wanted[mine], rtol=1e-4, atol=1e-4)
    grads = torch.autograd.grad(y_ND.square().sum(), parts)
    for ours, whole, part in zip(grads, wanted_grads, (mine, mine, held, held), strict=True):
        torch.testing.assert_close(ours, whole[part], rtol=1e-4, atol=1e-3)
    assert max(at_once) <= ROOM * tokens * active, at_once

with tempfile.NamedTemporaryFile() as store:
    children = []
    for rank in range(size):
        children.append(os.fork())
        if not children[-1]:
            work(rank, store.name)
            os._exit(0)
    sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize(
    "load", ["even", "all to one process", "nothing to one process", "the tokens of one process to one process"]
)
def test_any_load_gives_what_one_process_computes_and_takes_no_more_memory(processes, load):
    subprocess.run([sys.executable, "-c", EXCHANGE, str(processes), load], check=True, timeout=300)
