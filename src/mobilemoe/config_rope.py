"""RoPE in a config.json: `rope_theta` and `rope_scaling`, and their successor in transformers 5.

There `rope_parameters` holds the base and the scaling, once for all layers or once for each kind of layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mobilemoe.config_rules import FULL, is_finite
from mobilemoe.errors import ConfigError

_OLD, _NEW, _THETA = "rope_scaling", "rope_parameters", "rope_theta"
# Of scalings that are not computed here, whatever kind they claim to be; other keys mean nothing and are kept.
_FOREIGN = """
    alpha attention_factor attn_factor beta_fast beta_slow extrapolation_factor finetuned long_factor long_mscale mscale
    mscale_all_dim mrope_interleaved mrope_section scale_base short_factor short_mscale truncate
"""
FOREIGN_SCALING = frozenset(_FOREIGN.split())
_OF_LLAMA3 = frozenset(("factor", "low_freq_factor", "high_freq_factor"))


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """The `llama3` frequency scaling (spec section 2, point 4); it applies at every length."""

    factor: float = 16.0
    original_max_position_embeddings: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not is_finite(value) or value <= 0:
                raise ConfigError(f"rope_scaling.{name} is {value!r}, not a positive number")
        if self.low_freq_factor > self.high_freq_factor:
            raise ConfigError(
                f"rope_scaling.low_freq_factor is {self.low_freq_factor}, "
                f"but must not be larger than high_freq_factor {self.high_freq_factor}"
            )


def read_rope(raw: Mapping[str, Any], layer_types: Iterable[Any]) -> tuple[Any, RopeScaling | None]:
    """The base (None if no key gives one) and the scaling; ConfigError where two keys contradict each other."""
    kinds = sorted({str(kind) for kind in layer_types}) or [FULL]
    theta, scaling = (_THETA, raw[_THETA]) if raw.get(_THETA) is not None else None, None
    for key in (_OLD, _NEW):
        if raw.get(key) is None or (key == _NEW and raw[key] == {}):
            continue
        for where, entry in _entries(raw[key], key, kinds):
            found = _read_scaling(entry, where, "default" if key == _NEW else None)
            if scaling is not None and scaling[1] != found:
                raise ConfigError(f"{where} and {scaling[0]} do not say the same: only one scaling is supported")
            scaling = (where, found)
            if _THETA not in entry:
                if key == _NEW and theta is None:
                    raise ConfigError(f"{where}.{_THETA} is missing")
                continue
            inner = (f"{where}.{_THETA}", entry[_THETA])
            if not is_finite(inner[1]) or inner[1] <= 0:
                raise ConfigError(f"{inner[0]} is {inner[1]!r}, not a positive number")
            if theta is not None and theta[1] != inner[1]:
                raise ConfigError(f"{inner[0]} is {inner[1]!r}, but {theta[0]} is {theta[1]!r}: only one is supported")
            theta = theta or inner
    return None if theta is None else theta[1], None if scaling is None else scaling[1]


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The keys, old and new, for this base and scaling in all layers."""
    old = None if scaling is None else {"rope_type": "llama3", **vars(scaling)}
    return {_THETA: theta, _OLD: old, _NEW: {_THETA: theta, **(old or {"rope_type": "default"})}}


def _entries(value: Any, key: str, kinds: list[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The entries in `key` for the kinds of layers that exist, each with its place for messages."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {value!r}, not an object")
    nested = [name for name, entry in value.items() if isinstance(entry, Mapping) or name.endswith("_attention")]
    if not nested:
        return [(key, value)]
    if others := value.keys() - set(nested):
        raise ConfigError(f"{key} holds {min(others)} beside {nested[0]}: give it once for each kind of layer")
    for kind in kinds:
        if not isinstance(value.get(kind), Mapping):
            raise ConfigError(f"{key}.{kind} is {value.get(kind)!r}, but every layer must have RoPE")
    return [(f"{key}.{kind}", value[kind]) for kind in kinds]


def _read_scaling(entry: Mapping[str, Any], where: str, otherwise: str | None) -> RopeScaling | None:
    kinds = {name: entry[name] for name in ("rope_type", "type") if name in entry}
    if len(kinds) == 2 and kinds["rope_type"] != kinds["type"]:
        raise ConfigError(f"{where}.rope_type is {kinds['rope_type']!r}, but {where}.type is {kinds['type']!r}")
    kind = next(iter(kinds.values()), otherwise)
    if kind not in ("llama3", "default"):
        raise ConfigError(f"{where}.rope_type is {kind!r}, but only 'llama3' is supported")
    part = entry.get("partial_rotary_factor")
    if part not in (None, 1):
        raise ConfigError(f"{where}.partial_rotary_factor is {part!r}, but RoPE turns the whole head here")
    foreign = (
        FOREIGN_SCALING if kind == "llama3" else {*FOREIGN_SCALING, "factor", "low_freq_factor", "high_freq_factor"}
    )
    for key, value in entry.items():
        if key in foreign and value is not None:
            raise ConfigError(f"{where}.{key} is {value!r:.60}, which is not supported with {kind!r}")
    if kind == "default":
        return None
    try:
        return RopeScaling(**{field.name: entry[field.name] for field in fields(RopeScaling)})
    except KeyError as missing:
        raise ConfigError(f"{where}.{missing.args[0]} is missing") from None
    except ConfigError as fault:
        raise ConfigError(str(fault).replace(f"{_OLD}.", f"{where}.", 1)) from None
