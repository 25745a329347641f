"""One layer: attention and FFN, each with a norm before it and a residual (spec section 2, points 2 and 5).

B batch, T tokens, D hidden, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilemoe.config import ModelConfig
from mobilemoe.model.attention import Attention, Documents
from mobilemoe.model.experts import Experts
from mobilemoe.model.kv_cache import KVCache
from mobilemoe.model.linear import linears
from mobilemoe.model.norm import RMSNorm
from mobilemoe.model.rope import RopeTable
from mobilemoe.model.router import Router, Routing


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): the dense FFN and the shared expert."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = linears(x, self.gate_proj, self.up_proj)
        return self.down_proj(nn.functional.silu(gate) * up)


class MoE(nn.Module):
    """The sum of the routed experts and the shared expert, which has weight 1."""

    expert_bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)
        # A buffer, since it is changed by the load balance and not by a gradient.
        self.register_buffer("expert_bias", torch.zeros(config.num_local_experts) if config.has_expert_bias else None)
        if config.intermediate_size_mlp:
            self.shared_expert = SwiGLU(config.hidden_size, config.intermediate_size_mlp)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_ND = x_BTD.flatten(0, 1)
        routing = self.router(x_ND, self.expert_bias)
        y_ND = self.experts(x_ND, routing.experts_NA, routing.weights_NA)
        if hasattr(self, "shared_expert"):
            y_ND = y_ND + self.shared_expert(x_ND)
        return y_ND.view_as(x_BTD), routing


class Block(nn.Module):
    """h = x + Attn(norm(x)); h + FFN(norm(h)). The routing is None in a dense layer."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward: MoE | SwiGLU
        if config.is_moe:
            self.feed_forward = MoE(config)
        else:
            self.feed_forward = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self, x_BTD: Tensor, rope: RopeTable, mask: Tensor | Documents | None, cache: KVCache | None
    ) -> tuple[Tensor, Routing | None]:
        h_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rope, mask, cache)
        normed_BTD = self.post_attention_layernorm(h_BTD)
        if isinstance(self.feed_forward, MoE):
            y_BTD, routing = self.feed_forward(normed_BTD)
            return h_BTD + y_BTD, routing
        return h_BTD + self.feed_forward(normed_BTD), None
