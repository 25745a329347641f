"""Grouped-query causal attention with QK-norm (spec section 2, point 4).

B batch, T query tokens, S key tokens, D hidden, H query heads, K key/value heads, h head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mobilemoe.config import ModelConfig
from mobilemoe.model import kernels
from mobilemoe.model.kv_cache import KVCache
from mobilemoe.model.linear import joined, linears
from mobilemoe.model.norm import RMSNorm, rms_norm
from mobilemoe.model.rope import RopeTable, apply_rope


class Documents(NamedTuple):
    """Where the documents of B rows of T tokens start in the flattened rows (int32; the last entry is the end).

    Stands for causal attention within each document on a GPU, where a mask of T x T would cost more than attention.
    """

    starts: Tensor
    longest: int


def documents(segments_BT: Tensor, device: torch.device) -> Documents:
    """The documents of packed rows, each a run of equal segments, for attention on `device`.

    The host has to know how many there are. For segments on a GPU it has to wait for that; for those on the CPU it
    does not.
    """
    rows, tokens = segments_BT.shape
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    starts = begins_BT.flatten().nonzero().squeeze(1).to(torch.int32)
    # Padded with empty documents to a power of two, so that compiled code sees few shapes.
    filled = 1 << len(starts).bit_length()
    starts = nn.functional.pad(starts, (0, filled + 1 - len(starts)), value=rows * tokens)
    if device.type == "cuda" and not starts.is_cuda:
        starts = starts.pin_memory()
    return Documents(starts.to(device, non_blocking=True), tokens)


def visible(segments_BT: Tensor, segments_BS: Tensor, window: int | None) -> Tensor:
    """Which keys each query attends to, bool [B, 1, T, S]: those of its own segment, within the window, not later.

    The T queries are the last T of the S keys. A segment is one document of a packed row. Padding is a segment of its
    own, so that no text attends to it and every query has a key.
    """
    queries, keys = segments_BT.shape[1], segments_BS.shape[1]
    query_T1 = torch.arange(keys - queries, keys, device=segments_BS.device).unsqueeze(1)
    key_S = torch.arange(keys, device=segments_BS.device)
    near_TS = key_S <= query_T1
    if window is not None:
        near_TS &= key_S > query_T1 - window
    return (near_TS & (segments_BT.unsqueeze(2) == segments_BS.unsqueeze(1))).unsqueeze(1)


class Attention(nn.Module):
    """q, k, v and o without bias; RoPE on adjacent pairs, then QK-norm, a weightless norm of each head."""

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

    def project(self, x_BTD: Tensor, rope: RopeTable) -> tuple[Tensor, Tensor, Tensor]:
        """q_BTHh, k_BTKh and v_BTKh of x, with positions and norms applied."""
        head_dim, eps = self.config.head_dim, self.config.rms_norm_eps
        layers = self.q_proj, self.k_proj, self.v_proj
        bf16 = x_BTD.dtype == torch.bfloat16 and kernels.usable(x_BTD)
        if bf16 and self.config.qk_norm == "head" and head_dim & (head_dim - 1) == 0:
            from mobilemoe.model.kernels import rope_qk_norm

            heads = self.config.num_attention_heads, self.config.num_key_value_heads
            table_Nh = (part.flatten(0, 2) for part in rope)
            parts = rope_qk_norm.rotate_and_norm(joined(x_BTD, *layers).flatten(0, 1), *table_Nh, eps, *heads)
            q_BTHh, k_BTKh, v_BTKh = (part.unflatten(0, x_BTD.shape[:2]) for part in parts)
            return q_BTHh, k_BTKh, v_BTKh
        q_BTC, k_BTC, v_BTC = linears(x_BTD, *layers)
        if self.config.qk_norm == "projection_weight":
            q_BTC, k_BTC = self.q_norm(q_BTC), self.k_norm(k_BTC)
        q_BTHh, k_BTKh = q_BTC.unflatten(-1, (-1, head_dim)), k_BTC.unflatten(-1, (-1, head_dim))
        if self.config.qk_norm == "head_weight":
            q_BTHh, k_BTKh = self.q_norm(q_BTHh), self.k_norm(k_BTKh)
        v_BTKh = v_BTC.unflatten(-1, (-1, head_dim))
        q_BTHh, k_BTKh = apply_rope(q_BTHh, rope), apply_rope(k_BTKh, rope)
        if self.config.qk_norm == "head":
            q_BTHh, k_BTKh = rms_norm(q_BTHh, None, eps), rms_norm(k_BTKh, None, eps)
        return q_BTHh.to(v_BTKh.dtype), k_BTKh.to(v_BTKh.dtype), v_BTKh

    def forward(self, x_BTD: Tensor, rope: RopeTable, mask: Tensor | Documents | None, cache: KVCache | None) -> Tensor:
        """`mask` is what `visible` gives for this layer; None means plain causal attention over x itself."""
        q_BTHh, k_BTKh, v_BTKh = self.project(x_BTD, rope)
        k_BSKh, v_BSKh = (k_BTKh, v_BTKh) if cache is None else cache.append(self.layer, k_BTKh, v_BTKh)
        if isinstance(mask, Documents):
            return self.o_proj(self._within_documents(q_BTHh, k_BSKh, v_BSKh, mask).flatten(-2))
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

    def _within_documents(self, q_BTHh: Tensor, k_BTKh: Tensor, v_BTKh: Tensor, rows: Documents) -> Tensor:
        """FlashAttention over documents of any length; torch 2.11 has no public function that takes grouped queries."""
        flat = (x.flatten(0, 1) for x in (q_BTHh, k_BTKh, v_BTKh))
        bounds = (rows.starts, rows.starts, rows.longest, rows.longest)
        out = torch.ops.aten._flash_attention_forward(*flat, *bounds, 0.0, True, False, scale=self.config.scale)
        out_BTHh: Tensor = out[0].view_as(q_BTHh)
        return out_BTHh
