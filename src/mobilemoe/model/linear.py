"""Several linear layers over one input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def linears(x: Tensor, *layers: nn.Linear) -> Sequence[Tensor]:
    """What each layer (without bias) gives for x. On a GPU one product does it, whose gradient for x is one product
    too, unless a layer is of another class, which then has its own way: adapters, quantisation."""
    if not x.is_cuda or any(type(layer) is not nn.Linear for layer in layers):
        return [layer(x) for layer in layers]
    together = nn.functional.linear(x, torch.cat([layer.weight for layer in layers]))
    return together.split([layer.out_features for layer in layers], dim=-1)
