"""RMSNorm, computed in fp32 (spec section 2, point 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilemoe.model import kernels


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` itself in fp32 and float64, else as fp32."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, times `weight` if there is one, in the dtype of x."""
    weight = None if weight is None else weight.to(at_least_fp32(x).dtype)
    return nn.functional.rms_norm(at_least_fp32(x), x.shape[-1:], weight, eps).to(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm with a plain weight of one value per channel."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Under autocast the result has autocast's dtype, so that the matmuls that follow need no cast each."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return rms_norm(x, self.weight, self.eps).to(dtype)

    def of_sum(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x + y and its norm."""
        if type(self) is RMSNorm and y.dtype == torch.bfloat16 and kernels.usable(x):
            from mobilemoe.model.kernels.norm import add_and_norm

            total_ND, normed_ND, _ = add_and_norm(x.flatten(0, -2), y.flatten(0, -2), self.weight, self.eps)
            return total_ND.view_as(x), normed_ND.view_as(x)
        total = x + y
        return total, self(total)
