"""Parameters, bytes, FLOPs and KV cache of a config: the only place where they are computed.

Counts are whole numbers; bytes are bytes; FLOPs count a multiply-add as two. spec section 1 gives the published values.
Functions of a `Shape` take a ModelConfig and give numbers, or the shapes of many models at once and give arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mobilemoe.config import GROUP_SIZE, ModelConfig

Storage = Literal["matrix", "embedding", "router", "vector"]
WeightBits = Literal[4, 8, 16]
IntArray = NDArray[np.int64]
C = TypeVar("C", int, IntArray)  # a count: of one model, or an array with one for each of several
C_co = TypeVar("C_co", int, IntArray, covariant=True)


class Shape(Protocol[C_co]):
    """What is counted: the fields of ModelConfig that sizes depend on."""

    @property
    def vocab_size(self) -> C_co: ...
    @property
    def hidden_size(self) -> C_co: ...
    @property
    def num_hidden_layers(self) -> C_co: ...
    @property
    def num_attention_heads(self) -> C_co: ...
    @property
    def num_key_value_heads(self) -> C_co: ...
    @property
    def head_dim(self) -> C_co: ...
    @property
    def intermediate_size(self) -> C_co: ...
    @property
    def intermediate_size_mlp(self) -> C_co: ...
    @property
    def num_local_experts(self) -> C_co: ...
    @property
    def num_experts_per_tok(self) -> C_co: ...
    @property
    def is_moe(self) -> bool: ...
    @property
    def has_expert_bias(self) -> bool: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def qk_norm(self) -> str: ...
    @property
    def layer_types(self) -> tuple[str, ...]: ...
    def window(self, layer: int) -> int | None: ...


@dataclass(frozen=True)
class Part(Generic[C]):
    """One kind of tensor: `count` copies of a matrix of `rows` x `columns`, `active` of which a token uses.

    rows times columns is grouped by 32 along `columns` in INT4 files.
    """

    name: str
    storage: Storage
    count: C | int
    active: C | int
    rows: C | int
    columns: C

    @property
    def parameters(self) -> C:
        return self.count * self.rows * self.columns

    @property
    def active_parameters(self) -> C:
        return self.active * self.rows * self.columns

    @property
    def int4_bytes(self) -> C:
        return self.stored_bytes(4)

    def stored_bytes(self, bits: WeightBits) -> C:
        """Payload bytes in a file with `bits` for each weight; norms stay in BF16 and the router in fp32 (spec 3).

        4 is a `mobilemoe-int4-g32` file (3.1) and 16 a BF16 file (3.2). 8 is no file format yet: it counts a byte for
        each weight, and the same fp16 scale for each group.
        """
        if bits < 16 and self.storage in ("matrix", "embedding"):
            code_bytes, scales = -(-self.columns * bits // 8), -(-self.columns // GROUP_SIZE)
            return self.count * self.rows * (code_bytes + 2 * scales)
        return self.parameters * (4 if self.storage == "router" else 2)


def parts(config: Shape[C]) -> Iterator[Part[C]]:
    """Every kind of tensor in the model, summed over layers."""
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


def _sum(counts: Iterable[C]) -> C:
    return reduce(add, counts)


def total_parameters(config: Shape[C]) -> C:
    return _sum(part.parameters for part in parts(config))


def active_parameters(config: Shape[C]) -> C:
    """Parameters that one token uses: a tied embedding once, no selection bias."""
    return _sum(part.active_parameters for part in parts(config))


def file_bytes(config: Shape[C], bits: WeightBits) -> C:
    """Payload of the file with `bits` for each weight, without its header."""
    return _sum(part.stored_bytes(bits) for part in parts(config))


def int4_file_bytes(config: ModelConfig) -> int:
    """Payload of the INT4 file without its header: nibbles, fp16 scales, BF16 norms and bias, fp32 router."""
    return file_bytes(config, 4)


def int4_paper_bytes(config: ModelConfig) -> float:
    """The paper's INT4 memory: 1 byte per embedding weight, 1/2 per other matrix weight, no scales, router 4 bytes."""
    width = {"embedding": 1.0, "matrix": 0.5, "router": 4.0, "vector": 2.0}
    return sum(part.parameters * width[part.storage] for part in parts(config))


def bf16_file_bytes(config: ModelConfig) -> int:
    return file_bytes(config, 16)


def kv_bytes_per_token(config: Shape[C], bits: int = 8) -> C:
    """Bytes of keys and values that one more token adds over all layers (spec section 4), while no window is full."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bits // 8


def kv_bytes(config: Shape[C], context: int, bits: int = 8) -> C:
    """Bytes of the KV cache after `context` tokens; a sliding layer keeps no more than its window."""
    return 2 * _attended(config, context) * config.num_key_value_heads * config.head_dim * bits // 8


def decode_bytes(config: Shape[C], context: int = 0, kv_bits: int = 8, weight_bits: WeightBits = 4) -> C:
    """Bytes that one decoded token reads: the weights that it uses, and the keys and values of `context`."""
    weights = _sum(part.stored_bytes(weight_bits) * part.active // part.count for part in parts(config))
    if not config.tie_word_embeddings:  # only one row of the input embedding is read
        weights -= next(part.stored_bytes(weight_bits) for part in parts(config) if part.name == "embedding")
    return weights + kv_bytes(config, context, kv_bits)


def _matmul_flops(config: Shape[C]) -> C:
    """2 N_act, without an input embedding that is only looked up (untied models)."""
    lookup = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return 2 * (active_parameters(config) - lookup)


def _attended(config: Shape[C], context: int) -> C:
    """Keys that one token at position context - 1 attends to, summed over layers."""
    cut = sum(context - min(context, config.window(layer) or context) for layer in range(len(config.layer_types)))
    return config.num_hidden_layers * context - cut


def _attended_by_all(config: Shape[C], tokens: int) -> C:
    """Pairs of a token and a key that it attends to, in a prompt of `tokens`, summed over layers."""
    beyond = [tokens - min(tokens, config.window(layer) or tokens) for layer in range(len(config.layer_types))]
    return config.num_hidden_layers * (tokens * (tokens + 1) // 2) - sum(n * (n + 1) // 2 for n in beyond)


def decode_flops(config: Shape[C], context: int = 0) -> C:
    """FLOPs of one decoded token: 2 N_act, and 4 heads head_dim per key that it attends to."""
    attention = 4 * config.num_attention_heads * config.head_dim * _attended(config, context)
    return _matmul_flops(config) + attention


def prefill_flops(config: Shape[C], tokens: int) -> C:
    """FLOPs of a prompt of `tokens` with causal attention; the output head runs for the last position only."""
    head = 2 * config.vocab_size * config.hidden_size
    attention = 4 * config.num_attention_heads * config.head_dim * _attended_by_all(config, tokens)
    linear: C = tokens * (_matmul_flops(config) - head) + head
    return linear + attention


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
