"""Several linear layers over one input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def linears(x: Tensor, *layers: nn.Linear) -> Sequence[Tensor]:
    """The outputs of several layers without bias for the same x. On a GPU they are one product, forward and backward,
    unless a layer is of a class of its own, as with adapters or quantisation."""
    if not x.is_cuda or any(type(layer) is not nn.Linear for layer in layers):
        return [layer(x) for layer in layers]
    together = nn.functional.linear(x, torch.cat([layer.weight for layer in layers]))
    return together.split([layer.out_features for layer in layers], dim=-1)
