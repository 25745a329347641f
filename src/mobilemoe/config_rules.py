"""What a ModelConfig must satisfy: ConfigError names the field, its value and the rule.

The config is typed as Any, because `config` imports this module.
"""

from __future__ import annotations

import math
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mobilemoe.errors import ConfigError

FULL, SLIDING = "full_attention", "sliding_attention"


def is_finite(value: Any) -> bool:
    """Whether this is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def check_types(config: Any) -> None:
    """Every field holds a value of its declared type; a list may stand for a tuple, an int for a float."""
    for name, (kind, optional) in _declared(config.__class__).items():
        value = getattr(config, name)
        if value is None and optional:
            continue
        if fault := _type_fault(value, kind):
            raise ConfigError(f"{name} is {value!r}, {fault}")


@cache
def _declared(config_type: type) -> dict[str, tuple[Any, bool]]:
    """The type of each field, and whether it may be None."""
    found = {}
    for name, kind in get_type_hints(config_type).items():
        choices = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        found[name] = next(choice for choice in choices if choice is not NoneType), NoneType in choices
    return found


def _type_fault(value: Any, kind: Any) -> str:
    """What is wrong with a value of this type; empty if nothing is."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and not (number and isinstance(value, int)):
        return "not a whole number"
    if kind is float and not number:
        return "not a number"
    if kind is float and not is_finite(value):
        return "not a finite number"
    if kind is bool and not isinstance(value, bool):
        return "neither true nor false"
    if get_origin(kind) is tuple and not isinstance(value, list | tuple):
        return "not a list"
    if get_origin(kind) is Literal and value not in get_args(kind):
        return f"not one of {', '.join(get_args(kind))}"
    return ""


def check_rules(c: Any) -> None:
    """The fields fit each other."""
    positive = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
    positive += ["head_dim", "intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_theta"]
    positive += ["num_local_experts", "num_experts_per_tok", "routed_scaling_factor"] if c.is_moe else []
    positive += ["sliding_window"] if c.sliding_window is not None else []
    for name in positive:
        if getattr(c, name) <= 0:
            raise ConfigError(f"{name} is {getattr(c, name)}, but must be positive")
    if c.intermediate_size_mlp < 0:
        raise ConfigError(f"intermediate_size_mlp is {c.intermediate_size_mlp}, but must not be negative")
    if c.is_moe and c.num_experts_per_tok > c.num_local_experts:
        raise ConfigError(
            f"num_experts_per_tok is {c.num_experts_per_tok}, but there are only {c.num_local_experts} experts"
        )
    if not c.is_moe and (c.num_local_experts or c.num_experts_per_tok or c.intermediate_size_mlp):
        raise ConfigError(
            "ffn_type is dense, so num_local_experts, num_experts_per_tok and intermediate_size_mlp must be 0"
        )
    if c.num_attention_heads % c.num_key_value_heads:
        raise ConfigError(
            f"num_attention_heads is {c.num_attention_heads}, "
            f"not a multiple of num_key_value_heads {c.num_key_value_heads}"
        )
    if c.head_dim % 2:
        raise ConfigError(f"head_dim is {c.head_dim}, but RoPE needs an even number")
    if c.layer_types and len(c.layer_types) != c.num_hidden_layers:
        raise ConfigError(
            f"layer_types has {len(c.layer_types)} entries, but num_hidden_layers is {c.num_hidden_layers}"
        )
    for kind in c.layer_types:
        if kind not in (FULL, SLIDING):
            raise ConfigError(f"layer_types holds {kind!r}, but only {FULL} and {SLIDING} are supported")
    if SLIDING in c.layer_types and c.sliding_window is None:
        raise ConfigError(f"layer_types holds {SLIDING}, but sliding_window is missing")
    # An id beyond the vocabulary is no fault: a small model may carry a large one's ids, which then never occur.
    for name in ("bos_token_id", "eot_token_id", "header_start_token_id", "header_end_token_id"):
        value = getattr(c, name)
        if value is not None and value < 0:
            raise ConfigError(f"{name} is {value}, but must not be negative")
    for value in c.eos_token_id:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"eos_token_id holds {value!r}, not a token id")
