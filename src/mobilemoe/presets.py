"""The models that have a name, and `derive`, which builds a family member from a number of active parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

from mobilemoe import accounting
from mobilemoe.accounting import C
from mobilemoe.config import ModelConfig
from mobilemoe.config_rope import RopeScaling
from mobilemoe.config_rules import FULL, SLIDING
from mobilemoe.errors import ConfigError, UsageError

FAMILY_KNOBS = {"experts": 8, "granularity": 8, "shared": 1}  # E, g and s of S, M and L (spec section 1)
DENSE = (1, 1, 0)  # E, g and s of a dense model: there is nothing to cut or to share

LLAMA3_IDS: dict[str, Any] = {
    "bos_token_id": 128_000,
    "eos_token_id": (128_001, 128_007, 128_008),
    "eot_token_id": 128_008,
    "header_start_token_id": 128_005,
    "header_end_token_id": 128_006,
}


def family_member(
    hidden_size: int,
    *,
    expansion: int = 8,
    granularity: int = 8,
    shared: bool = True,
    layers: int | None = None,
    vocab_size: int = 128_256,
    rope_scaling: RopeScaling | None = None,
    **other: Any,
) -> ModelConfig:
    """The member of width `hidden_size` by the general rule of spec section 1.

    expansion: E, the routed capacity divided by that of the dense FFN. granularity: g, how finely experts are cut.
    shared: whether g/2 of the g active slots are fused into one expert that is always on. E = 1 is the dense FFN of
    width 4d.
    """
    d_ff = 4 * hidden_size
    if expansion < 1 or granularity < 1:
        raise ConfigError(f"expansion is {expansion} and granularity {granularity}, but both must be at least 1")
    if d_ff % granularity:
        raise ConfigError(f"granularity is {granularity}, but must divide the FFN width {d_ff}")
    if shared and granularity % 2 and expansion > 1:
        raise ConfigError(
            f"granularity is {granularity}, but a shared expert takes half of the slots, so it must be even"
        )
    head_dim = 64 if hidden_size >= 256 else 32
    if hidden_size % head_dim:
        raise ConfigError(f"hidden_size is {hidden_size}, not a multiple of the head_dim {head_dim}")
    heads = hidden_size // head_dim
    if expansion == 1:
        ffn: dict[str, Any] = {"ffn_type": "dense", "intermediate_size": d_ff}
    else:
        ffn = family_experts(hidden_size, expansion, granularity, int(shared))
        # The weight of a single expert, normalised, is always 1: its router would learn nothing from the loss.
        other.setdefault("norm_topk_prob", ffn["num_experts_per_tok"] > 1)
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers or math.ceil(hidden_size / 40),
        num_attention_heads=heads,
        num_key_value_heads=family_kv_heads(heads),
        head_dim=head_dim,
        rope_scaling=rope_scaling,
        **ffn,
        **other,
    )


def family_experts(hidden_size: C, expansion: C, granularity: C, shared: C) -> dict[str, C]:
    """The config fields of a mixture's experts by spec section 1, as numbers, or as arrays with an entry for each
    model.

    If `shared` is 1, g/2 of the active slots are fused.
    """
    width, fused = 4 * hidden_size // granularity, granularity // 2 * shared
    return {
        "intermediate_size": width,
        "intermediate_size_mlp": fused * width,
        "num_local_experts": expansion * granularity - fused,
        "num_experts_per_tok": granularity - fused,
    }


def family_kv_heads(heads: int) -> int:
    """The family's number of KV heads: the largest up to 4 that divides the query heads (spec section 1)."""
    return max(kv for kv in (1, 2, 3, 4) if heads % kv == 0)


def family_knobs(
    experts: Iterable[int], granularity: Iterable[int], shared: Iterable[int]
) -> Iterator[tuple[int, int, int]]:
    """Every (E, g, s) of these values that makes a model, each once: a shared expert needs an even g."""
    made = (DENSE if e == 1 else (e, g, s) for e, g, s in product(experts, granularity, shared))
    yield from dict.fromkeys((e, g, s) for e, g, s in made if not s or g % 2 == 0)


def derive(active: float, expansion: int = 8, granularity: int = 8, shared: bool = True, **other: Any) -> ModelConfig:
    """The family member whose number of active parameters (embedding counted once) is nearest to `active`.

    `other` are further arguments of `family_member`: layers, vocab_size, rope_scaling, config fields. The widths tried
    are multiples of 32 below 256, and of 64 from there to 8192. Raises ConfigError if no width comes within a factor of
    two, which happens when the vocabulary alone is larger than `active`.
    """
    widths = [*range(32, 256, 32), *range(256, 8193, 64)]
    candidates = [
        family_member(width, expansion=expansion, granularity=granularity, shared=shared, **other)
        for width in widths
        if granularity < 1 or 4 * width % granularity == 0  # less than 1: family_member says what is wrong
    ]
    if not candidates or active <= 0:
        raise ConfigError(f"no width can be built with active {active} and granularity {granularity}")
    best = min(candidates, key=lambda config: abs(accounting.active_parameters(config) - active))
    reached = accounting.active_parameters(best)
    if not active / 2 <= reached <= active * 2:
        raise ConfigError(
            f"active is {active:.4g}, but the nearest member has {reached:,}: change vocab_size or layers"
        )
    return best


def _released(hidden_size: int) -> ModelConfig:
    return family_member(hidden_size, rope_scaling=RopeScaling(), **LLAMA3_IDS)


_MOBILELLM_PRO = ModelConfig(
    vocab_size=202_048,
    hidden_size=1280,
    num_hidden_layers=30,
    num_attention_heads=20,
    num_key_value_heads=4,
    head_dim=64,
    ffn_type="dense",
    intermediate_size=6144,
    attention_scale=0.1,
    sliding_window=8192,
    layer_types=tuple(FULL if layer % 4 == 0 else SLIDING for layer in range(30)),
    max_position_embeddings=131_072,
)

_OLMOE = ModelConfig(
    vocab_size=50_304,
    hidden_size=2048,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=16,
    head_dim=128,
    intermediate_size=1024,
    num_local_experts=64,
    num_experts_per_tok=8,
    router_score="softmax",
    norm_topk_prob=False,
    routed_scaling_factor=1.0,
    qk_norm="projection_weight",
    rope_theta=10_000.0,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)

# Two thirds of the family's FFN are active, in 4 experts of 18: see recipes/nano-pretrain.toml.
_NANO = dataclasses.replace(
    family_member(
        384, expansion=3, granularity=6, shared=False, layers=8, vocab_size=16_384, max_position_embeddings=2048
    ),
    num_experts_per_tok=4,
)

# nano and micro have plain RoPE, which every stock runtime can express.
PRESETS: dict[str, ModelConfig] = {
    "S": _released(768),
    "M": _released(1024),
    "L": _released(1280),
    "nano": _NANO,
    "micro": family_member(64, expansion=4, granularity=4, vocab_size=16_384, max_position_embeddings=1024),
    "mobilellm-pro": _MOBILELLM_PRO,
    "olmoe-1b-7b": _OLMOE,
}


def preset(name: str) -> ModelConfig:
    """The config called `name`; UsageError lists the names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise UsageError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}") from None
