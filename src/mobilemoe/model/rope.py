"""Rotary positions on adjacent pairs, with the `llama3` frequency scaling (spec section 2, point 4).

B batch, T tokens, H heads, h head_dim, R = h / 2 rotated pairs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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
    turns_R = scaling.original_max_position_embeddings * freq_R / (2 * math.pi)  # rotations over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if low == high:  # the interpolation below would divide by zero
        keep_R = (turns_R >= low).double()
    else:
        keep_R = ((turns_R - low) / (high - low)).clamp(0, 1)
    return keep_R * freq_R + (1 - keep_R) * freq_R / scaling.factor


class RopeTable(NamedTuple):
    """The cosines and signed sines of each position's angles, [B, T, 1, h]. Each angle appears twice, once for each
    element of its pair."""

    cos_BT1h: Tensor
    sin_BT1h: Tensor


def rope_table(freq_R: Tensor, positions_BT: Tensor, dtype: torch.dtype) -> RopeTable:
    """The table in `dtype`. Angles are computed in float64, since fp32 loses precision at large positions."""
    angle_BT1R = (positions_BT.double().unsqueeze(-1) * freq_R).unsqueeze(2)
    sin_BT1R = angle_BT1R.sin()
    sin_BT1h = torch.stack((-sin_BT1R, sin_BT1R), -1).flatten(-2)
    return RopeTable(angle_BT1R.cos().repeat_interleave(2, -1).to(dtype), sin_BT1h.to(dtype))


def apply_rope(x_BTHh: Tensor, rope: RopeTable) -> Tensor:
    """Rotates each pair (x[2i], x[2i+1]) by its angle; returned in the precision of the table."""
    x_BTHh = x_BTHh.to(rope.cos_BT1h.dtype)
    swapped_BTHh = x_BTHh.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x_BTHh * rope.cos_BT1h + swapped_BTHh * rope.sin_BT1h
