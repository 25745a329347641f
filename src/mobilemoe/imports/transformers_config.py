"""The config.json of an architecture of transformers as the ModelConfig of the same function.

A key that is absent stands for transformers' default. Keys that change what is computed are left to ModelConfig, which
refuses by name what it does not compute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilemoe.config import CONVERTIBLE, GROUP_SIZE, ModelConfig
from mobilemoe.errors import ConfigError
from mobilemoe.files import read_json
from mobilemoe.imports.stored_tensors import Packing

_MAX_BYTES = 2**20
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")  # each a name of the number of experts
_DEFAULTS: dict[str, dict[str, Any]] = {
    "glm4_moe": {
        "max_position_embeddings": 131072,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "use_qk_norm": False,
        "rms_norm_eps": 1e-5,
    },
    "dots1": {
        "max_position_embeddings": 2048,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 0,
        "rms_norm_eps": 1e-6,
    },
    "olmoe": {"max_position_embeddings": 4096, "norm_topk_prob": False, "rms_norm_eps": 1e-5},
    "qwen3_moe": {
        "max_position_embeddings": 32768,
        "norm_topk_prob": False,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
    },
}
_COMMON = {"tie_word_embeddings": False}
_SIGMOID = ("glm4_moe", "dots1")  # with a bias for the choice, and shared experts
_PACKED = {  # what compressed-tensors must say of packed weights
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": GROUP_SIZE,
}
_DEFAULT_THETA = 10_000.0


def model_type(folder: Path) -> str | None:
    """The model_type in the config.json of `folder` if it is one of CONVERTIBLE."""
    path = folder / "config.json"
    kind = read_json(path, ConfigError, _MAX_BYTES).get("model_type") if path.is_file() else None
    return kind if kind in CONVERTIBLE else None


def read_packing(folder: Path) -> Packing | None:
    """How the weights in `folder` are packed, None if they are floats; ConfigError names the file and the key."""
    path = folder / "config.json"
    try:
        return _packing(read_json(path, ConfigError, _MAX_BYTES))
    except ConfigError as fault:
        raise ConfigError(f"{path}: {fault}") from None


def _packing(raw: Mapping[str, Any]) -> Packing | None:
    if isinstance(mlx := raw.get("quantization"), Mapping):
        modules = {f"quantization.{name}": value for name, value in mlx.items() if isinstance(value, Mapping)}
        for name, value in {"quantization": mlx, **modules}.items():
            if (value.get("bits"), value.get("group_size"), value.get("mode", "affine")) != (4, GROUP_SIZE, "affine"):
                raise ConfigError(f"{name:.90} is not affine with 4 bits in groups of {GROUP_SIZE}")
        return "mlx"
    theirs = raw.get("quantization_config")
    if not isinstance(theirs, Mapping) or theirs.get("quant_method") != "compressed-tensors":
        return None
    if theirs.get("format") != "pack-quantized":
        raise ConfigError(f"quantization_config.format is {theirs.get('format')!r:.60}, but must be 'pack-quantized'")
    groups = theirs.get("config_groups")
    for name, group in groups.items() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping) or any(weights.get(key) != value for key, value in _PACKED.items()):
            raise ConfigError(f"quantization_config.config_groups.{name:.60}.weights is not {_PACKED}")
        for key in ("input_activations", "output_activations"):
            if group.get(key):
                raise ConfigError(f"quantization_config.config_groups.{name:.60}.{key} is not null")
    return "compressed-tensors"


def read_config(folder: Path) -> ModelConfig:
    """The config of the checkpoint in `folder`, whatever its weights are packed as; ConfigError names file and key.

    The norm of queries and keys is "head_weight" and the shared expert is there wherever the files have them; what
    their weights say is for the caller to look at.
    """
    path = folder / "config.json"
    raw = read_json(path, ConfigError, _MAX_BYTES)
    try:
        translated = _translate(raw)
    except ConfigError as fault:
        raise ConfigError(f"{path}: {fault}") from None
    config = ModelConfig.from_dict(translated, str(path))
    # Without the keys of the other architecture, which would be written into the new config.json.
    return dataclasses.replace(config, raw={})


def _translate(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same model under our keys, with all other keys kept to be checked."""
    kind = raw["model_type"]
    given = {key: value for key, value in raw.items() if value is not None and key != "model_type"}
    if _packing(raw) is not None:
        given = {key: value for key, value in given.items() if key not in ("quantization", "quantization_config")}
    keys: dict[str, Any] = {**_COMMON, **_DEFAULTS[kind], **given}
    heads, width = _count(keys, "num_attention_heads"), _count(keys, _width_key(kind))
    keys.setdefault("num_key_value_heads", heads)
    keys.setdefault("head_dim", _count(keys, "hidden_size") // max(1, heads))
    _set_rope(keys, kind)
    if keys.get("use_sliding_window") is False:
        keys.pop("sliding_window", None)
    experts = next((name for name in _COUNTS if name in keys), _COUNTS[2 if kind in _SIGMOID else 0])
    shared = _count(keys, "n_shared_experts") * width if kind in _SIGMOID else 0
    qk_norm = "projection_weight" if kind == "olmoe" else "head_weight"
    if kind == "glm4_moe" and keys.pop("use_qk_norm") is not True:
        qk_norm = "none"
    ours = {
        "num_local_experts": _count(keys, experts),
        "intermediate_size": width,
        "intermediate_size_mlp": shared,
        "ffn_type": "moe",
        "router_score": "sigmoid" if kind in _SIGMOID else "softmax",
        "qk_norm": qk_norm,
        "attention_scale": None,
    }
    return keys | ours | ({} if kind in _SIGMOID else {"routed_scaling_factor": 1.0})


def _width_key(kind: str) -> str:
    """The key of the width of a routed expert; where that is another, intermediate_size is of dense layers."""
    return "intermediate_size" if kind == "olmoe" else "moe_intermediate_size"


def _set_rope(keys: dict[str, Any], kind: str) -> None:
    rope = keys.get("rope_parameters")
    if not isinstance(rope, Mapping):
        rope = {}
    if "rope_theta" not in keys and "rope_theta" not in rope:
        keys["rope_theta"] = _DEFAULT_THETA
    if kind == "glm4_moe" and "partial_rotary_factor" not in rope:
        keys.setdefault("partial_rotary_factor", 0.5)


def _count(keys: Mapping[str, Any], key: str) -> int:
    if key not in keys:
        raise ConfigError(f"{key} is missing")
    value = keys[key]
    if type(value) is not int or value < 0:  # not isinstance: true is an int to Python
        raise ConfigError(f"{key} is {value!r:.60}, not a whole number")
    return value
