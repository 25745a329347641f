"""Several linear layers over one input, and products that stay in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def joined(x: Tensor, *layers: nn.Linear) -> Tensor:
    """The outputs of several layers without bias for the same x, side by side. On a GPU they are one product, forward
    and backward, unless a layer is of a class of its own, as with adapters or quantisation."""
    if not _one_product(x, *layers):
        return torch.cat([layer(x) for layer in layers], dim=-1)
    return nn.functional.linear(x, torch.cat([layer.weight for layer in layers]))


def linears(x: Tensor, *layers: nn.Linear) -> Sequence[Tensor]:
    """The outputs of `joined`, each by itself."""
    if not _one_product(x, *layers):
        return [layer(x) for layer in layers]
    return joined(x, *layers).split([layer.out_features for layer in layers], dim=-1)


def _one_product(x: Tensor, *layers: nn.Linear) -> bool:
    return x.is_cuda and all(type(layer) is nn.Linear for layer in layers)


def product_in_fp32(a: Tensor, b: Tensor, total: Tensor | None = None) -> Tensor:
    """The product a b of bf16 matrices in fp32, the precision in which a GPU accumulates it; added to `total`, in
    place, where there is one."""
    if not a.is_cuda:
        product = a.float() @ b.float()
        return product if total is None else total.add_(product)
    if total is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
