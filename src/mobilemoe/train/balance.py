"""Load balance without an auxiliary loss: a selection bias moved against each expert's load (spec section 5).

L MoE layers, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mobilemoe.model.block import MoE


@torch.no_grad()
def move_biases(layers: list[MoE], load_LE: Tensor, rate: float) -> None:
    """Raises the bias of every expert whose load is below the mean by `rate`, and lowers those above the mean."""
    load_LE = load_LE.double()
    sign_LE = (load_LE.mean(dim=1, keepdim=True) - load_LE).sign()
    for layer, sign_E in zip(layers, sign_LE, strict=True):
        if layer.expert_bias is not None:
            layer.expert_bias += rate * sign_E.to(layer.expert_bias.dtype)
