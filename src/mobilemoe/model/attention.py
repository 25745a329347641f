"""Grouped-query causal attention with QK-norm (SPEC section 2, point 4).

B batch, T query tokens, S key tokens, D hidden, H query heads, K key/value heads, h head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilemoe.config import ModelConfig
from mobilemoe.model.cache import KVCache
from mobilemoe.model.norm import RMSNorm, rms_norm
from mobilemoe.model.rope import apply_rope


def visible(segments_BT: Tensor, segments_BS: Tensor, window: int | None) -> Tensor:
    """Which keys each query sees, bool [B, 1, T, S]: not later, in its own segment, within the window.

    The T queries are the last T of the S keys. A segment is one document of a packed row; padding is a segment of
    its own, so that nothing sees it and no query is left without a key.
    """
    queries, keys = segments_BT.shape[1], segments_BS.shape[1]
    query_T1 = torch.arange(keys - queries, keys, device=segments_BS.device).unsqueeze(1)
    key_S = torch.arange(keys, device=segments_BS.device)
    near_TS = key_S <= query_T1
    if window is not None:
        near_TS &= key_S > query_T1 - window
    return (near_TS & (segments_BT.unsqueeze(2) == segments_BS.unsqueeze(1))).unsqueeze(1)


class Attention(nn.Module):
    """q, k, v and o without bias; RoPE on adjacent pairs, then the weightless norm of each head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        q_width, kv_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, config.hidden_size, bias=False)
        if config.qk_norm in ("head_weight", "projection_weight"):
            per_head = config.qk_norm == "head_weight"
            self.q_norm = RMSNorm(config.head_dim if per_head else q_width, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim if per_head else kv_width, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, rope: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """`mask` is what `visible` gives for this layer; None means plain causal attention over x itself."""
        head_dim, eps = self.config.head_dim, self.config.rms_norm_eps
        q_BTC, k_BTC = self.q_proj(x_BTD), self.k_proj(x_BTD)
        if self.config.qk_norm == "projection_weight":
            q_BTC, k_BTC = self.q_norm(q_BTC), self.k_norm(k_BTC)
        q_BTHh, k_BTKh = q_BTC.unflatten(-1, (-1, head_dim)), k_BTC.unflatten(-1, (-1, head_dim))
        if self.config.qk_norm == "head_weight":
            q_BTHh, k_BTKh = self.q_norm(q_BTHh), self.k_norm(k_BTKh)
        v_BTKh = self.v_proj(x_BTD).unflatten(-1, (-1, head_dim))
        q_BTHh, k_BTKh = apply_rope(q_BTHh, rope), apply_rope(k_BTKh, rope)
        if self.config.qk_norm == "head":
            q_BTHh, k_BTKh = rms_norm(q_BTHh, None, eps), rms_norm(k_BTKh, None, eps)
        q_BTHh, k_BTKh = q_BTHh.to(v_BTKh.dtype), k_BTKh.to(v_BTKh.dtype)
        k_BSKh, v_BSKh = (k_BTKh, v_BTKh) if cache is None else cache.append(self.layer, k_BTKh, v_BTKh)
        out_BHTh = nn.functional.scaled_dot_product_attention(
            q_BTHh.transpose(1, 2),
            k_BSKh.transpose(1, 2),
            v_BSKh.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.config.scale,
            enable_gqa=self.config.num_attention_heads != self.config.num_key_value_heads,
        )
        return self.o_proj(out_BHTh.transpose(1, 2).flatten(-2))
