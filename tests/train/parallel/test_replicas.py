"""Processes that hold a model whole share its update: each keeps the moments of its part of every matrix."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from mobilemoe.model import MobileMoE
from mobilemoe.presets import preset
from mobilemoe.train.optimizer import make_optimizer, moments
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
