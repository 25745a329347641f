"""Attention behind transformers' interface: every implementation that it knows, and its caches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mobilemoe.hf.configuration import MobileMoEConfig
from mobilemoe.model.attention import Attention
from mobilemoe.model.rope import RopeTable


def eager_attention(
    module: MobileMoEAttention,
    q_BHTh: Tensor,
    k_BKSh: Tensor,
    v_BKSh: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention step by step, with a softmax in fp32: the sums [B, T, H, h], and the weights [B, H, T, S].

    `mask` is added to the scores.
    """
    k_BHSh, v_BHSh = (x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (k_BKSh, v_BKSh))
    scores_BHTS = q_BHTh @ k_BHSh.mT * scaling
    if mask is not None:
        scores_BHTS = scores_BHTS + mask
    weights_BHTS = nn.functional.softmax(scores_BHTS, dim=-1, dtype=torch.float32).to(q_BHTh.dtype)
    weights_BHTS = nn.functional.dropout(weights_BHTS, dropout, training=module.training)
    return (weights_BHTS @ v_BHSh).transpose(1, 2).contiguous(), weights_BHTS


class MobileMoEAttention(Attention):
    """The model's own projections, positions and norms, between a cache and an attention function of transformers."""

    def __init__(self, config: MobileMoEConfig, layer: int) -> None:
        shape = config.shape()
        super().__init__(shape, layer)
        # The names under which attention functions look. The config replaces ModelConfig, whose fields it has.
        self.config: Any = config
        self.layer_idx, self.is_causal = layer, True
        self.num_key_value_groups = shape.num_attention_heads // shape.num_key_value_heads
        self.scaling, self.sliding_window = shape.scale, shape.window(layer)

    def forward(  # type: ignore[override]
        self, x_BTD: Tensor, rope: RopeTable, mask: Tensor | None, cache: Cache | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        q_BHTh, k_BKTh, v_BKTh = (x_BTHh.transpose(1, 2) for x_BTHh in self.project(x_BTD, rope))
        if cache is not None:
            k_BKTh, v_BKTh = cache.update(k_BKTh, v_BKTh, self.layer_idx, kwargs=kwargs)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out_BTHh, weights_BHTS = attend(
            self,
            q_BHTh,
            k_BKTh,
            v_BKTh,
            mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(out_BTHh.flatten(-2)), weights_BHTS
