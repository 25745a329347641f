"""The optimizers that a recipe may name, and their state as tensors by parameter name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mobilemoe.checkpoint.container import Array
from mobilemoe.errors import TrainError
from mobilemoe.train.muon import SCALE, SCALE_RATE, make_muon
from mobilemoe.train.parallel.distributed import by_mesh, fill
from mobilemoe.train.parallel.replicas import updated
from mobilemoe.train.recipe import TrainTable

_STEP = "step"  # the state's count of updates, the same for every parameter


def make_optimizer(model: nn.Module, train: TrainTable) -> torch.optim.Optimizer:
    """The recipe's optimizer of all trainable weights. Norm weights are gains around 1, so they are not decayed."""
    if train.optimizer == "muon":
        return make_muon(model, train)
    learning = [updated(parameter) for parameter in model.parameters() if parameter.requires_grad]
    scales = {updated(parameter) for name, parameter in model.named_parameters() if name.endswith(SCALE)}
    groups = []
    for alike in by_mesh(learning).values():
        weights = [w for w in alike if w not in scales]
        groups += [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": train.weight_decay},
            {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
            {"params": [w for w in alike if w in scales], "weight_decay": 0.0, "factor": SCALE_RATE},
        ]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas, eps=train.eps, fused=True)


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by "parameter name/moment", as they are after at least one update."""
    return {
        f"{name}/{moment}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state.get(updated(parameter), {}).items()
        if moment != _STEP
    }


def updates(optimizer: torch.optim.Optimizer) -> int:
    """How many times the optimizer has changed the weights."""
    return max((int(state[_STEP]) for state in optimizer.state.values() if _STEP in state), default=0)


def restore_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Array], updates: int
) -> None:
    """Restores what `moments` returned after `updates` updates. Raises TrainError if one is missing or misshapen."""
    _make_state(optimizer)
    for name, place in moments(model, optimizer).items():
        value = saved.get(name)
        if value is None or value.shape != place.shape:
            parameter, _, moment = name.rpartition("/")
            raise TrainError(f"the optimizer state holds no {moment} for {parameter} of shape {list(place.shape)}")
        fill(place, value)
    for state in optimizer.state.values():
        if _STEP in state:
            state[_STEP] = torch.full_like(torch.as_tensor(state[_STEP]), updates)


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Makes a new optimizer allocate its state, by an update with a rate of 0, which changes no weight."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
