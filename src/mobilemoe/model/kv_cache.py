"""KV cache: keys, values and segments of the tokens seen so far.

B batch, S slots (tokens that fit), L layers, K key/value heads, h head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mobilemoe.config import ModelConfig
from mobilemoe.errors import UsageError


class KVCache:
    """Keys and values of up to `slots` tokens of `batch` sequences in every layer, `length` of which are filled."""

    def __init__(
        self, config: ModelConfig, batch: int, slots: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
        self.keys_LBSKh = torch.empty(shape, dtype=dtype, device=device)
        self.values_LBSKh = torch.empty(shape, dtype=dtype, device=device)
        self.segments_BS = torch.empty((batch, slots), dtype=torch.long, device=device)
        self.length = 0

    @property
    def slots(self) -> int:
        return self.segments_BS.shape[1]

    def append_segments(self, segments_BT: Tensor) -> Tensor:
        """Stores the segments of T new tokens; returns those of all tokens so far. UsageError if they do not fit."""
        end = self.length + segments_BT.shape[1]
        if end > self.slots:
            raise UsageError(f"the KV cache has {self.slots} slots, but {end} tokens were given: make it larger")
        self.segments_BS[:, self.length : end] = segments_BT
        return self.segments_BS[:, :end]

    def append(self, layer: int, k_BTKh: Tensor, v_BTKh: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the keys and values of T new tokens of one layer and returns those of all tokens so far."""
        end = self.length + k_BTKh.shape[1]
        self.keys_LBSKh[layer, :, self.length : end] = k_BTKh
        self.values_LBSKh[layer, :, self.length : end] = v_BTKh
        return self.keys_LBSKh[layer, :, :end], self.values_LBSKh[layer, :, :end]

    def advance(self, tokens: int) -> None:
        """Counts the `tokens` tokens that were appended in every layer as filled."""
        self.length += tokens
