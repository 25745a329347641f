"""Rotary positions on adjacent pairs, with the `llama3` frequency scaling (SPEC section 2, point 4).

B batch, T tokens, H heads, h head_dim, R = h / 2 rotated pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mobilemoe.config import ModelConfig


def rope_frequencies(config: ModelConfig) -> Tensor:
    """freq_R in radians per position, float64."""
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device="cpu")
    freq_R = config.rope_theta ** (-pairs / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return freq_R
    turns_R = scaling.original_max_position_embeddings * freq_R / (2 * math.pi)  # over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if low == high:  # the blend below would divide by zero
        keep_R = (turns_R >= low).double()
    else:
        keep_R = ((turns_R - low) / (high - low)).clamp(0, 1)
    return keep_R * freq_R + (1 - keep_R) * freq_R / scaling.factor


def rope_table(freq_R: Tensor, positions_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(i angle) for every position and pair, complex [B, T, 1, R], with parts of `dtype`.

    The angles are made in float64, since fp32 loses them far from the start.
    """
    angle_BTR = positions_BT.double().unsqueeze(-1) * freq_R.to(positions_BT.device)
    return torch.polar(torch.ones_like(angle_BTR), angle_BTR).to(dtype.to_complex()).unsqueeze(2)


def apply_rope(x_BTHh: Tensor, rope_BT1R: Tensor) -> Tensor:
    """Rotates each pair (x[2i], x[2i+1]), taken as one complex number; returned in the precision of the table."""
    pairs_BTHR = torch.view_as_complex(x_BTHh.to(rope_BT1R.dtype.to_real()).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs_BTHR * rope_BT1R).flatten(-2)
