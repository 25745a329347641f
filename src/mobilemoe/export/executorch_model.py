"""A model in operators that ExecuTorch runs: attention with a KV cache, the MoE operator, linears for XNNPACK.

One sequence. T new tokens, S slots of the cache, D hidden, H query heads, K key/value heads, h head_dim, C channels of
all heads, V vocabulary.
"""

from __future__ import annotations

from typing import cast

import executorch.extension.llm.custom_ops.custom_ops
import executorch.kernels.quantized  # noqa: F401  # as the import above, it registers operators
import numpy as np
import torch
from torch import Tensor, nn
from torchao.quantization.quantize_.workflows import IntxUnpackedToInt8Tensor

from mobilemoe.config import GROUP_SIZE, ModelConfig
from mobilemoe.export.executorch_weights import Weights, pack_embedding
from mobilemoe.model.block import SwiGLU
from mobilemoe.model.norm import RMSNorm, rms_norm
from mobilemoe.model.rope import rope_frequencies

_BITS = 4
_INT4: torch.dtype = torch.int4  # type: ignore[attr-defined]  # its stubs leave it out


def linear(weights: Weights, name: str) -> nn.Linear:
    """INT4 weights; the inputs are rounded to int8 as they come, with a scale and a zero point for each token."""
    q, scales = (torch.from_numpy(part) for part in weights.linear(name))
    zeros = torch.zeros_like(scales, dtype=torch.int8)
    weight = IntxUnpackedToInt8Tensor(q, scales, zeros, _INT4, (1, GROUP_SIZE), torch.float32, "int8_asym_per_token")
    layer = nn.Linear(q.shape[1], q.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def norm(weights: Weights, name: str, eps: float) -> RMSNorm:
    """A norm with the weight of that name."""
    weight = torch.from_numpy(weights.floats(name))
    layer = RMSNorm(len(weight), eps)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def swiglu(weights: Weights, stem: str) -> SwiGLU:
    """A dense FFN or the shared expert."""
    layer = SwiGLU(1, 1)
    for part in ("gate_proj", "up_proj", "down_proj"):
        setattr(layer, part, linear(weights, f"{stem}.{part}.weight"))
    return layer


class Embedding(nn.Module):
    """Rows of INT4 weights under fp16 scales."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        matrix = weights.embedding()
        self.register_buffer("packed", torch.from_numpy(pack_embedding(matrix)))
        self.register_buffer("scales", torch.from_numpy(matrix.scales.astype(np.float16)))

    def forward(self, tokens_1T: Tensor) -> Tensor:
        operator = torch.ops.quantized_decomposed.embedding_4bit.dtype
        x_1TD: Tensor = operator(self.packed, self.scales, None, -8, 7, tokens_1T, dtype=torch.float32)
        return x_1TD


class Attention(nn.Module):
    """`mobilemoe.model.Attention` with RoPE on pairs half a head apart, over a cache of S slots in fp32."""

    v_proj: nn.Linear
    o_proj: nn.Linear
    keys_1SKh: Tensor
    values_1SKh: Tensor

    def __init__(self, config: ModelConfig, weights: Weights, stem: str, slots: int) -> None:
        super().__init__()
        self.config = config
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", linear(weights, f"{stem}.{letter}_proj.weight"))
        if config.qk_norm in ("head_weight", "projection_weight"):
            for letter in "qk":
                setattr(self, f"{letter}_norm", norm(weights, f"{stem}.{letter}_norm.weight", config.rms_norm_eps))
        shape_1SKh = (1, slots, config.num_key_value_heads, config.head_dim)
        self.register_buffer("keys_1SKh", torch.zeros(shape_1SKh))
        self.register_buffer("values_1SKh", torch.zeros(shape_1SKh))

    def forward(self, x_1TD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor, start: int) -> Tensor:
        q_1THh, k_1TKh = (self._turned(letter, x_1TD, cos_T1h, sin_T1h) for letter in "qk")
        v_1TKh = self.v_proj(x_1TD).unflatten(-1, (-1, self.config.head_dim))
        torch.ops.llama.update_cache(k_1TKh, self.keys_1SKh, start)
        torch.ops.llama.update_cache(v_1TKh, self.values_1SKh, start)
        causal = (None, 0.0, True)  # no mask, no dropout
        out_1THh = torch.ops.llama.custom_sdpa(
            q_1THh, self.keys_1SKh, self.values_1SKh, start, *causal, self.config.scale
        )
        x_1TD = self.o_proj(out_1THh.flatten(-2))
        return x_1TD

    def _turned(self, letter: str, x_1TD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
        """Queries or keys, normed and rotated."""
        config = self.config
        x_1TC = getattr(self, f"{letter}_proj")(x_1TD)
        if config.qk_norm == "projection_weight":
            x_1TC = getattr(self, f"{letter}_norm")(x_1TC)
        x_1THh = x_1TC.unflatten(-1, (-1, config.head_dim))
        if config.qk_norm == "head_weight":
            x_1THh = getattr(self, f"{letter}_norm")(x_1THh)
        elif config.qk_norm == "head":
            x_1THh = rms_norm(x_1THh, None, config.rms_norm_eps)  # before RoPE: a rotation keeps the norm
        first, second = x_1THh.chunk(2, dim=-1)
        turned_1THh: Tensor = x_1THh * cos_T1h + torch.cat([-second, first], dim=-1) * sin_T1h
        return turned_1THh


class MoE(nn.Module):
    """The routed experts and their router in one operator; the shared expert beside it."""

    def __init__(self, config: ModelConfig, weights: Weights, stem: str) -> None:
        super().__init__()
        self.config = config
        bias_E = torch.empty(0)  # none
        if config.has_expert_bias:
            bias_E = torch.from_numpy(weights.floats(f"{stem}.expert_bias"))
        self.register_buffer("router_ED", torch.from_numpy(weights.floats(f"{stem}.router.weight")))
        self.register_buffer("bias_E", bias_E)
        for part in ("gate_up", "down"):
            self.register_buffer(part, torch.from_numpy(weights.experts(f"{stem}.experts.{part}_proj")))
        if config.intermediate_size_mlp:
            self.shared_expert = swiglu(weights, f"{stem}.shared_expert")

    def forward(self, x_1TD: Tensor) -> Tensor:
        config = self.config
        shape = (config.num_experts_per_tok, config.num_local_experts, config.intermediate_size, config.hidden_size)
        scoring = (config.router_score, config.routed_scaling_factor)
        tensors = (self.router_ED, self.bias_E, self.gate_up, self.down)
        y_TD = torch.ops.llama.quantized_moe_ffn(x_1TD.squeeze(0), *tensors, *shape, GROUP_SIZE, _BITS, *scoring)
        if config.router_score == "softmax":  # for which the operator leaves the factor out
            y_TD = y_TD * config.routed_scaling_factor
        y_1TD: Tensor = y_TD.unsqueeze(0)
        return y_1TD + self.shared_expert(x_1TD) if hasattr(self, "shared_expert") else y_1TD


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int, slots: int) -> None:
        super().__init__()
        stem, eps = f"model.layers.{layer}", config.rms_norm_eps
        self.input_layernorm = norm(weights, f"{stem}.input_layernorm.weight", eps)
        self.self_attn = Attention(config, weights, f"{stem}.self_attn", slots)
        self.post_attention_layernorm = norm(weights, f"{stem}.post_attention_layernorm.weight", eps)
        stem = f"{stem}.feed_forward"
        self.feed_forward = MoE(config, weights, stem) if config.is_moe else swiglu(weights, stem)

    def forward(self, x_1TD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor, start: int) -> Tensor:
        h_1TD = x_1TD + self.self_attn(self.input_layernorm(x_1TD), cos_T1h, sin_T1h, start)
        y_1TD: Tensor = h_1TD + self.feed_forward(self.post_attention_layernorm(h_1TD))
        return y_1TD


class ExportedModel(nn.Module):
    """The whole model, with the inputs and the output that ExecuTorch's text runner knows."""

    cos_S1h: Tensor
    sin_S1h: Tensor

    def __init__(self, config: ModelConfig, weights: Weights, slots: int) -> None:
        super().__init__()
        self.slots = slots
        angles_SR = torch.arange(slots, dtype=torch.float64).unsqueeze(1) * rope_frequencies(config)
        self.register_buffer("cos_S1h", angles_SR.cos().float().repeat(1, 2).unsqueeze(1))
        self.register_buffer("sin_S1h", angles_SR.sin().float().repeat(1, 2).unsqueeze(1))
        self.embed_tokens = Embedding(weights)
        self.layers = nn.ModuleList(Block(config, weights, layer, slots) for layer in range(config.num_hidden_layers))
        self.norm = norm(weights, "model.norm.weight", config.rms_norm_eps)
        self.lm_head = linear(weights, "lm_head.weight")

    def forward(self, tokens_1T: Tensor, start_1: Tensor) -> Tensor:
        """logits_1V of the last of T tokens, the first of which has the position `start`."""
        tokens, start = tokens_1T.shape[1], cast(int, start_1[0].item())  # a symbol; int() would ask for its value
        torch._check(start >= 0)
        torch._check(start < self.slots)
        torch._check(start + tokens <= self.slots)
        cos_T1h, sin_T1h = self.cos_S1h.narrow(0, start, tokens), self.sin_S1h.narrow(0, start, tokens)
        x_1TD = self.embed_tokens(tokens_1T)
        for layer in self.layers:
            x_1TD = layer(x_1TD, cos_T1h, sin_T1h, start)
        logits_1V: Tensor = self.lm_head(self.norm(x_1TD[:, -1]))
        return logits_1V
