"""One layer: attention and FFN, each with a norm before it and a residual (spec section 2, points 2 and 5).

B batch, T tokens, D hidden, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilemoe.config import ModelConfig
from mobilemoe.model import kernels
from mobilemoe.model.attention import Attention, Documents
from mobilemoe.model.experts import Experts, plus
from mobilemoe.model.kv_cache import KVCache
from mobilemoe.model.linear import joined, linears
from mobilemoe.model.norm import RMSNorm
from mobilemoe.model.rope import RopeTable
from mobilemoe.model.router import Router, Routing
from mobilemoe.model.router_product import shared_and_router


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): the dense FFN and the shared expert."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and kernels.usable(x):
            from mobilemoe.model.kernels import rows

            return self.down_proj(rows.swiglu(joined(x, self.gate_proj, self.up_proj)))
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

    def forward(self, x_BTD: Tensor, residual_BTD: Tensor | None = None) -> tuple[Tensor, Routing]:
        """The sum for each token of x, and of the residual where there is one."""
        x_ND = x_BTD.flatten(0, 1)
        shared = getattr(self, "shared_expert", None)
        if shared is not None and self._is_joint(x_ND):
            weights = shared.gate_proj.weight, shared.up_proj.weight, self.router.weight
            with torch.autocast(x_ND.device.type, enabled=False):  # which would round the logits
                act_NW, logits_NE, _ = shared_and_router(x_ND, *weights)
            routing, shared_ND = self.router.route(logits_NE, self.expert_bias), shared.down_proj(act_NW)
        else:
            routing = self.router(x_ND, self.expert_bias)
            shared_ND = None if shared is None else shared(x_ND)
        chosen, more = (x_ND, routing.experts_NA, routing.weights_NA), [] if shared_ND is None else [shared_ND]
        if residual_BTD is None:
            return plus(self.experts(*chosen), more).view_as(x_BTD), routing
        return self.experts(*chosen, more=[*more, residual_BTD.flatten(0, 1)]).view_as(x_BTD), routing

    def _is_joint(self, x_ND: Tensor) -> bool:
        """Whether shared expert and router are computed together: in bf16 on a GPU, where plain weights learn."""
        layers = self.shared_expert.gate_proj, self.shared_expert.up_proj
        plain = all(type(layer) is nn.Linear and layer.weight.requires_grad for layer in layers)
        return plain and type(self.router) is Router and x_ND.dtype == torch.bfloat16 and kernels.usable(x_ND)


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
        attended_BTD = self.self_attn(self.input_layernorm(x_BTD), rope, mask, cache)
        h_BTD, normed_BTD = self.post_attention_layernorm.of_sum(x_BTD, attended_BTD)
        if isinstance(self.feed_forward, MoE):
            y_BTD: Tensor
            y_BTD, routing = self.feed_forward(normed_BTD, h_BTD)
            return y_BTD, routing
        return h_BTD + self.feed_forward(normed_BTD), None
