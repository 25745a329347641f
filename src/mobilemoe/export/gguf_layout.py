"""How a model stands in a GGUF file: which of llama.cpp's architectures computes it, and which tensor is which weight.

Two of its architectures compute what ours do. `glm4moe` takes plain RoPE and a shared expert as wide as some routed
ones; `exaone-moe` also reads the factors of scaled RoPE and takes any shared width, but rotates only in layers that
have a sliding window, so all layers get one wider than the context, and it wants the output matrix beside the
embedding. Shapes are NumPy's: the last axis lies together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mobilemoe.config import GROUP_SIZE, ModelConfig
from mobilemoe.export.stock import check_family, output_rows

Architecture = Literal["glm4moe", "exaone-moe"]
SIGMOID = 2  # llama.cpp's number of the gating function
SCALING_KEYS = "mobilemoe.rope_scaling"  # before the names of RopeScaling: from its factors it could not be told


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: the outputs `rows` of our weight `weight`, or if that is None `fill` everywhere.

    `is_matrix` says whether it takes the file's type; all others are F32. `values` stand for a tensor of their own.
    """

    name: str
    shape: tuple[int, ...]
    weight: str | None = None
    rows: npt.NDArray[np.intp] | slice | None = None  # None: all
    is_matrix: bool = True
    fill: float = 0.0
    values: npt.NDArray[np.float32] | None = None


def architecture(config: ModelConfig) -> Architecture:
    """The architecture of llama.cpp for `config`; UsageError, with the reason, if it has none."""
    check_family(config, "llama.cpp")
    is_multiple = config.intermediate_size_mlp % config.intermediate_size == 0
    return "glm4moe" if config.rope_scaling is None and is_multiple else "exaone-moe"


def shared_width(config: ModelConfig, arch: Architecture) -> int:
    """Width of the shared expert in the file; where ours has none, that of the least one of zeros."""
    return config.intermediate_size_mlp or (config.intermediate_size if arch == "glm4moe" else GROUP_SIZE)


def metadata(config: ModelConfig, arch: Architecture) -> dict[str, Any]:
    """The architecture's keys, without its name before them."""
    shared = shared_width(config, arch)
    keys: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.intermediate_size,
        "expert_shared_count": shared // config.intermediate_size if arch == "glm4moe" else 1,
        "expert_gating_func": SIGMOID,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": config.norm_topk_prob,
        "leading_dense_block_count": 0,
    }
    if arch == "exaone-moe":
        keys["expert_shared_feed_forward_length"] = shared
        keys["attention.sliding_window"] = 2 * config.max_position_embeddings
        keys["attention.sliding_window_pattern"] = [True] * config.num_hidden_layers
    return keys


def scaling_metadata(config: ModelConfig) -> dict[str, float]:
    """Keys of our own, which llama.cpp passes over, from which `imports` knows the scaling of RoPE again."""
    scaling = {} if config.rope_scaling is None else vars(config.rope_scaling)
    return {f"{SCALING_KEYS}.{name}": float(value) for name, value in scaling.items()}


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Every tensor of the file, in the order in which they stand there."""
    arch, d = architecture(config), config.hidden_size
    embedding = Tensor("token_embd.weight", (config.vocab_size, d), "model.embed_tokens.weight")
    yield embedding
    if arch == "exaone-moe" and config.tie_word_embeddings:
        yield Tensor("output.weight", embedding.shape, embedding.weight)
    elif not config.tie_word_embeddings:
        yield Tensor("output.weight", embedding.shape, "lm_head.weight")
    yield Tensor("output_norm.weight", (d,), "model.norm.weight", is_matrix=False)
    if config.rope_scaling is not None:
        factors = rope_factors(config)
        yield Tensor("rope_freqs.weight", factors.shape, is_matrix=False, values=factors)
    for layer in range(config.num_hidden_layers):
        yield from _attention(config, layer)
        yield from _feed_forward(config, arch, layer)


def rope_factors(config: ModelConfig) -> npt.NDArray[np.float32]:
    """By what llama.cpp divides the frequency of each pair, [head_dim / 2] (spec section 2, point 4)."""
    scaling = config.rope_scaling
    frequency = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    if scaling is None:
        return np.ones(len(frequency), np.float32)
    turns = scaling.original_max_position_embeddings * frequency / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if low == high:
        keep = (turns >= low).astype(np.float64)
    else:
        keep = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / (keep + (1 - keep) / scaling.factor), np.float32)


def _attention(config: ModelConfig, layer: int) -> Iterator[Tensor]:
    ours, theirs, d = f"model.layers.{layer}", f"blk.{layer}", config.hidden_size
    q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    yield Tensor(f"{theirs}.attn_norm.weight", (d,), f"{ours}.input_layernorm.weight", is_matrix=False)
    for letter, shape in {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}.items():
        weight = f"{ours}.self_attn.{letter}_proj.weight"
        name = "attn_output" if letter == "o" else f"attn_{letter}"
        yield Tensor(f"{theirs}.{name}.weight", shape, weight, output_rows(config, weight))
    for letter in "qk":
        name, size = f"{theirs}.attn_{letter}_norm.weight", (config.head_dim,)
        weight = f"{ours}.self_attn.{letter}_norm.weight"
        if config.qk_norm == "head_weight":
            yield Tensor(name, size, weight, output_rows(config, weight), is_matrix=False)
        else:
            yield Tensor(name, size, is_matrix=False, fill=1.0)


def _feed_forward(config: ModelConfig, arch: Architecture, layer: int) -> Iterator[Tensor]:
    ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
    ffn, d, width, experts = (
        f"{ours}.feed_forward",
        config.hidden_size,
        config.intermediate_size,
        config.num_local_experts,
    )
    norm = "post_attention_norm" if arch == "glm4moe" else "ffn_norm"
    yield Tensor(f"{theirs}.{norm}.weight", (d,), f"{ours}.post_attention_layernorm.weight", is_matrix=False)
    yield Tensor(f"{theirs}.ffn_gate_inp.weight", (experts, d), f"{ffn}.router.weight", is_matrix=False)
    yield Tensor(f"{theirs}.exp_probs_b.bias", (experts,), f"{ffn}.expert_bias", is_matrix=False)
    halves = {"gate": slice(None, width), "up": slice(width, None)}  # of the fused matrix, the first half is gate
    for half, rows in halves.items():
        name = f"{theirs}.ffn_{half}_exps.weight"
        yield Tensor(name, (experts, width, d), f"{ffn}.experts.gate_up_proj", rows)
    yield Tensor(f"{theirs}.ffn_down_exps.weight", (experts, d, width), f"{ffn}.experts.down_proj")
    shared = shared_width(config, arch)
    for part, shape in {"gate": (shared, d), "up": (shared, d), "down": (d, shared)}.items():
        own = f"{ffn}.shared_expert.{part}_proj.weight" if config.intermediate_size_mlp else None
        yield Tensor(f"{theirs}.ffn_{part}_shexp.weight", shape, own)
