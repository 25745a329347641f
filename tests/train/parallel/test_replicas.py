"""Processes that hold a model whole share its update: each keeps the moments of its part of every matrix."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from mobilemoe.model import MobileMoE
from mobilemoe.presets import preset
from mobilemoe.train.optimizer import make_optimizer, moments
from mobilemoe.train.parallel import replicas
from mobilemoe.train.parallel.replicas import split_updates, updated
from train_runs import table

PROCESSES, RANK = 2, 1


@pytest.fixture
def model():
    """A micro model as the second of two processes holds it; nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=PROCESSES)
    try:
        whole = MobileMoE(preset("micro"))
        whole.initialize(0)
        split_updates(whole, init_device_mesh("cpu", (PROCESSES,)))
        yield whole
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_process_keeps_the_moments_of_its_part_of_each_matrix(model, optimizer):
    made = make_optimizer(model, table(optimizer=optimizer))
    for parameter in map(updated, model.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    for name, moment in moments(model, made).items():
        weight = model.get_parameter(name.rpartition("/")[0])
        assert moment.shape == weight.shape
        held = moment.to_local() if weight.ndim > 1 else moment
        assert held.numel() == weight.numel() // (PROCESSES if weight.ndim > 1 else 1)


def test_a_part_is_memory_of_its_weight(model):
    weight = model.model.embed_tokens.weight
    with torch.no_grad():
        updated(weight).to_local().zero_()
    first, second = weight.detach().chunk(PROCESSES)
    assert not second.any()
    assert first.any()


@pytest.fixture
def exchanges(monkeypatch):
    """What was asked of every exchange so far: the names of the operations in it."""
    made: list[list[str]] = []
    real = replicas.one_exchange

    @contextmanager
    def noted():
        made.append([])
        with real() as exchange:
            yield exchange

    def note(name):
        called = getattr(replicas, name)
        monkeypatch.setattr(replicas, name, lambda *a, **k: made[-1].append(name) or called(*a, **k))

    monkeypatch.setattr(replicas, "one_exchange", noted)
    note("reduce_scatter")
    note("all_gather")
    return made


def test_gradients_and_new_weights_of_a_block_travel_in_one_exchange(model, exchanges):
    shared = replicas.Replicas(model, PROCESSES)
    model(torch.arange(8)[None]).sum().backward()
    shared.wait()
    layers = model.config.num_hidden_layers
    sums = [exchange for exchange in exchanges if exchange]
    assert len(exchanges) == len(sums) + 1, "vectors have one more"
    assert len(sums) <= layers + 2
    matrices = sum(updated(parameter) is not parameter for parameter in model.parameters())
    assert sum(map(len, sums)) == matrices
    exchanges.clear()
    shared.spread()
    assert len(exchanges) == len(sums)
    assert sum(map(len, exchanges)) == matrices


def test_a_block_is_summed_although_one_of_its_tensors_got_no_gradient(model, exchanges):
    shared = replicas.Replicas(model, PROCESSES)
    matrix = next(p for p in model.model.layers[0].parameters() if updated(p) is not p)
    (matrix * 2).sum().backward()
    assert updated(matrix).grad is None, "the others may still come"
    shared.wait()
    assert updated(matrix).grad is not None
    assert exchanges == [["reduce_scatter"]]
