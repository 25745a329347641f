"""Parameters, bytes, FLOPs and KV cache of a config: the only place where they are computed.

Counts are whole numbers; bytes are bytes; FLOPs count a multiply-add as two. spec section 1 gives the published values.
Every function also takes `scaling.space.Shapes`, whose sizes are int64 arrays, and then gives arrays of its counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mobilemoe.config import GROUP_SIZE, ModelConfig

Storage = Literal["matrix", "embedding", "router", "vector"]
WeightBits = Literal[4, 8, 16]


@dataclass(frozen=True)
class Part:
    """One kind of tensor: `count` copies of a matrix of `rows` x `columns`, `active` of which a token uses.

    rows times columns is grouped by 32 along `columns` in INT4 files.
    """

    name: str
    storage: Storage
    count: int
    active: int
    rows: int
    columns: int

    @property
    def parameters(self) -> int:
        return self.count * self.rows * self.columns

    @property
    def active_parameters(self) -> int:
        return self.active * self.rows * self.columns

    @property
    def int4_bytes(self) -> int:
        return self.stored_bytes(4)

    def stored_bytes(self, bits: WeightBits) -> int:
        """Payload bytes in a file of `bits` a weight; norms stay in BF16 and the router in fp32 (spec 3).

        4 is a `mobilemoe-int4-g32` file (3.1), 16 a BF16 file (3.2); 8, which no file has yet, counts a byte for each
        weight and the same fp16 scale for each group.
        """
        if bits < 16 and self.storage in ("matrix", "embedding"):
            code_bytes, scales = -(-self.columns * bits // 8), -(-self.columns // GROUP_SIZE)
            return self.count * self.rows * (code_bytes + 2 * scales)
        return self.parameters * (4 if self.storage == "router" else 2)


def parts(config: ModelConfig) -> Iterator[Part]:
    """Every tensor kind of the model, summed over layers."""
    c, layers = config, config.num_hidden_layers
    d, q_width, kv_width = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    yield Part("embedding", "embedding", 1, 1, c.vocab_size, d)
    if not c.tie_word_embeddings:
        yield Part("output head", "embedding", 1, 1, c.vocab_size, d)
    yield Part("attention q", "matrix", layers, layers, q_width, d)
    yield Part("attention k, v", "matrix", 2 * layers, 2 * layers, kv_width, d)
    yield Part("attention o", "matrix", layers, layers, d, q_width)
    if c.qk_norm == "head_weight":
        yield Part("q and k norms", "vector", 2 * layers, 2 * layers, 1, c.head_dim)
    if c.qk_norm == "projection_weight":
        yield Part("q and k norms", "vector", layers, layers, 1, q_width + kv_width)
    if c.is_moe:
        experts, used, width = c.num_local_experts * layers, c.num_experts_per_tok * layers, c.intermediate_size
        yield Part("router", "router", layers, layers, c.num_local_experts, d)
        if c.has_expert_bias:
            yield Part("selection bias", "vector", layers, 0, 1, c.num_local_experts)
        yield Part("routed experts gate and up", "matrix", experts, used, 2 * width, d)
        yield Part("routed experts down", "matrix", experts, used, d, width)
        if np.any(c.intermediate_size_mlp):
            yield Part("shared expert gate and up", "matrix", layers, layers, 2 * c.intermediate_size_mlp, d)
            yield Part("shared expert down", "matrix", layers, layers, d, c.intermediate_size_mlp)
    else:
        yield Part("FFN gate and up", "matrix", layers, layers, 2 * c.intermediate_size, d)
        yield Part("FFN down", "matrix", layers, layers, d, c.intermediate_size)
    yield Part("norms", "vector", 2 * layers + 1, 2 * layers + 1, 1, d)


def total_parameters(config: ModelConfig) -> int:
    return sum(part.parameters for part in parts(config))


def active_parameters(config: ModelConfig) -> int:
    """Parameters that one token uses: a tied embedding once, no selection bias."""
    return sum(part.active_parameters for part in parts(config))


def file_bytes(config: ModelConfig, bits: WeightBits) -> int:
    """Payload of the file with `bits` a weight, without its header."""
    return sum(part.stored_bytes(bits) for part in parts(config))


def int4_file_bytes(config: ModelConfig) -> int:
    """Payload of the INT4 file without its header: nibbles, fp16 scales, BF16 norms and bias, fp32 router."""
    return file_bytes(config, 4)


def int4_paper_bytes(config: ModelConfig) -> float:
    """The paper's INT4 memory: 1 byte per embedding weight, 1/2 per other matrix weight, no scales, router 4 bytes."""
    width = {"embedding": 1.0, "matrix": 0.5, "router": 4.0, "vector": 2.0}
    return sum(part.parameters * width[part.storage] for part in parts(config))


def bf16_file_bytes(config: ModelConfig) -> int:
    return file_bytes(config, 16)


def kv_bytes_per_token(config: ModelConfig, bits: int = 8) -> int:
    """Keys and values that one more token adds over all layers (spec section 4), while no window is full."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bits // 8


def kv_bytes(config: ModelConfig, context: int, bits: int = 8) -> int:
    """KV cache after `context` tokens; a sliding layer keeps no more than its window."""
    return 2 * _attended(config, context) * config.num_key_value_heads * config.head_dim * bits // 8


def decode_bytes(config: ModelConfig, context: int = 0, kv_bits: int = 8, weight_bits: WeightBits = 4) -> int:
    """Bytes that one decoded token reads: the weights that it uses, and the keys and values of `context`."""
    weights = sum(part.stored_bytes(weight_bits) * part.active // part.count for part in parts(config))
    if not config.tie_word_embeddings:  # of which only a row is looked up
        weights -= next(part.stored_bytes(weight_bits) for part in parts(config) if part.name == "embedding")
    return weights + kv_bytes(config, context, kv_bits)


def _matmul_flops(config: ModelConfig) -> int:
    """2 N_act, less an input embedding that is only looked up (untied models)."""
    lookup = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return 2 * (active_parameters(config) - lookup)


def _attended(config: ModelConfig, context: int) -> int:
    """Keys that one token at position context - 1 meets, summed over layers."""
    if not config.layer_types:
        return config.num_hidden_layers * context
    windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
    return sum(min(context, window or context) for window in windows)


def _attended_by_all(config: ModelConfig, tokens: int) -> int:
    """Pairs of a token and a key that it meets, in a prompt of `tokens`, summed over layers."""
    if not config.layer_types:
        return config.num_hidden_layers * (tokens * (tokens + 1) // 2)
    pairs = 0
    for layer in range(config.num_hidden_layers):
        window = min(tokens, config.window(layer) or tokens)
        pairs += window * (window + 1) // 2 + (tokens - window) * window
    return pairs


def decode_flops(config: ModelConfig, context: int = 0) -> int:
    """FLOPs of one decoded token: 2 N_act, and 4 heads head_dim per key that it attends to."""
    attention = 4 * config.num_attention_heads * config.head_dim * _attended(config, context)
    return _matmul_flops(config) + attention


def prefill_flops(config: ModelConfig, tokens: int) -> int:
    """FLOPs of a prompt of `tokens` with causal attention; the output head runs for the last position only."""
    head = 2 * config.vocab_size * config.hidden_size
    attention = 4 * config.num_attention_heads * config.head_dim * _attended_by_all(config, tokens)
    return tokens * (_matmul_flops(config) - head) + head + attention


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """Forward and backward: 6 N_act, and 6 heads head_dim T a layer for attention (its causal half)."""
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * sequence_length
    return 3 * _matmul_flops(config) + attention


def summary(config: ModelConfig, context: int = 1024) -> dict[str, int | float]:
    """The numbers that `mobilemoe info` prints, by name."""
    return {
        "total_parameters": total_parameters(config),
        "active_parameters": active_parameters(config),
        "int4_file_bytes": int4_file_bytes(config),
        "int4_paper_bytes": int4_paper_bytes(config),
        "bf16_file_bytes": bf16_file_bytes(config),
        "kv_bytes_per_token": kv_bytes_per_token(config),
        "kv_bytes": kv_bytes(config, context),
        "decode_flops_per_token": decode_flops(config),
        "decode_flops_at_context": decode_flops(config, context),
        "prefill_flops": prefill_flops(config, context),
        "training_flops_per_token": training_flops_per_token(config, context),
        "context": context,
    }
