"""Load balance without an auxiliary loss: a selection bias moved against each expert's load (SPEC section 5).

L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mobilemoe.model.block import MoE
from mobilemoe.model.router import Routing


@dataclass(frozen=True)
class LoadReport:
    """How evenly a step's tokens fell: `variation` = std / mean over experts, averaged over layers; `dead` = experts
    of any layer that no token chose."""

    variation: float
    dead: int


def loads(routings: list[Routing]) -> Tensor:
    """load_LE: (token, expert) pairs of each layer's experts."""
    return torch.stack([routing.load_E() for routing in routings])


def report(load_LE: Tensor) -> LoadReport:
    load_LE = load_LE.double()
    variation_L = load_LE.std(dim=1, correction=0) / load_LE.mean(dim=1)
    return LoadReport(variation_L.mean().item(), int((load_LE == 0).sum()))


@torch.no_grad()
def move_biases(layers: list[MoE], load_LE: Tensor, rate: float) -> None:
    """Raises the bias of every expert with less than the mean load by `rate`, lowers that of the others."""
    for layer, load_E in zip(layers, load_LE.double(), strict=True):
        if layer.expert_bias is not None:
            layer.expert_bias += rate * (load_E.mean() - load_E).sign().to(layer.expert_bias.dtype)
