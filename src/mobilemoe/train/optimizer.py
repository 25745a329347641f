"""AdamW as the recipes use it: weight decay on matrices only, and moments that can be named and saved."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilemoe.errors import TrainError
from mobilemoe.train.recipe import TrainTable

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, train: TrainTable) -> torch.optim.AdamW:
    """Norm weights are not decayed: they are gains, whose rest is 1 and not 0."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas, eps=train.eps, fused=True)


def moments(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimizer's moments by "parameter name/moment", as they are after at least one step."""
    return {
        f"{name}/{moment}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        for moment in MOMENTS
    }


def restore_moments(model: nn.Module, optimizer: torch.optim.AdamW, saved: dict[str, Tensor], step: int) -> None:
    """Puts back what `moments` gave after `step` steps. Raises TrainError if a moment is missing or misshapen."""
    for name, parameter in model.named_parameters():
        state: dict[str, Tensor] = {"step": torch.tensor(float(step), device=parameter.device)}
        for moment in MOMENTS:
            value = saved.get(f"{name}/{moment}")
            if value is None or value.shape != parameter.shape:
                raise TrainError(f"the optimizer state holds no {moment} for {name} of shape {list(parameter.shape)}")
            state[moment] = value.to(parameter.device, parameter.dtype)
        optimizer.state[parameter] = state
