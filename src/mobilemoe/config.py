"""ModelConfig: one frozen description of every model here, dense or mixture-of-experts.

The field names are those of Meta's `config.json` (spec 3.3), so that the published files are read and written
unchanged. Keys that this package does not know are kept in `raw` and written back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from mobilemoe.config_keys import FOREIGN_KEYS, HARMLESS_KEYS, check_foreign_keys, foreign_faults
from mobilemoe.config_rope import RopeScaling, read_rope, write_rope
from mobilemoe.config_rules import FULL, SLIDING, check_rules, check_types
from mobilemoe.errors import ConfigError
from mobilemoe.files import read_json, write_json

_MAX_BYTES = 2**20  # of a config.json, as in the native reader
GROUP_SIZE = 32  # weights that share one INT4 scale
GroupAxis = Literal["in", "out"]
EXPERT_GROUP_AXIS = {"out": "out (last dim of [E, in, out])", "in": "in (last dim of [E, out, in])"}

# The values in `quantization` besides the axis. There is one format, so any other value means another format.
_QUANTIZATION = {
    "format": "mobilemoe-int4-g32",
    "group_size": GROUP_SIZE,
    "embedding_group_size": GROUP_SIZE,
    "qmin": -8,
    "qmax": 7,
    "symmetric": True,
    "scale_dtype": "float16",
    "linear_group_axis": "in (last dim of [out, in])",
    "packed": True,
}

# Keys of Meta's file whose values are the same for every model of the family.
_FIXED: dict[str, Any] = {
    "model_type": "mobilemoe",
    "architectures": ["MobileMoEForCausalLM"],
    "hidden_act": "silu",
    "interleave_moe_layer_step": 1,
    "attn_temperature_tuning": False,
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "attention_dropout": 0,
}
CONVERTIBLE = ("glm4_moe", "dots1", "olmoe", "qwen3_moe")  # the model_types that `mobilemoe.imports` reads
_FREE = ("architectures", "torch_dtype", "attention_dropout")  # fixed when written, not checked when read


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of one model; immutable, checked once when made (ConfigError names field, value and rule).

    For `ffn_type` "moe", `intermediate_size` is the width F of one routed expert and `intermediate_size_mlp` that of
    the shared expert (0: none); for "dense" `intermediate_size` is the width of the only FFN.
    `qk_norm`: "head" is the family's weightless norm over each head; "head_weight" and "projection_weight" have a
    weight and come before RoPE, over each head or over the whole projection (OLMoE).
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    intermediate_size_mlp: int = 0
    num_local_experts: int = 0
    num_experts_per_tok: int = 0
    ffn_type: Literal["moe", "dense"] = "moe"
    router_score: Literal["sigmoid", "softmax"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    qk_norm: Literal["none", "head", "head_weight", "projection_weight"] = "head"
    attention_scale: float | None = None  # None: 1 / sqrt(head_dim)
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None  # tokens that a sliding layer sees, itself included
    layer_types: tuple[str, ...] = ()  # empty: full attention in every layer
    max_position_embeddings: int = 8192
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    eot_token_id: int | None = None
    header_start_token_id: int | None = None
    header_end_token_id: int | None = None
    expert_group_axis: GroupAxis | None = None  # None: the weights are not quantised
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_types(self)
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise ConfigError(f"rope_scaling is {self.rope_scaling!r}, not a RopeScaling")
        # One form for each meaning, so that equal models are equal configs.
        types = tuple(self.layer_types)
        all_full = len(types) == self.num_hidden_layers and all(kind == FULL for kind in types)
        object.__setattr__(self, "layer_types", () if all_full else types)
        object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        for name in _FLOAT_KEYS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        check_rules(self)

    @property
    def is_moe(self) -> bool:
        return self.ffn_type == "moe"

    @property
    def is_quantized(self) -> bool:
        return self.expert_group_axis is not None

    @property
    def has_expert_bias(self) -> bool:
        """Whether the router has a selection bias (spec section 2, point 5)."""
        return self.is_moe and self.router_score == "sigmoid"

    @property
    def scale(self) -> float:
        """The factor on attention scores."""
        return self.attention_scale if self.attention_scale is not None else 1 / math.sqrt(self.head_dim)

    def window(self, layer: int) -> int | None:
        """The number of tokens that `layer` attends to, itself included; None for all."""
        return self.sliding_window if self.layer_types and self.layer_types[layer] == SLIDING else None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], name: str = "config.json") -> Self:
        """Builds the config that a `config.json` object describes; `name` is the file's name in messages."""
        try:
            return cls._parse(raw)
        except ConfigError as fault:
            raise ConfigError(f"{name}: {fault}") from None

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> Self:
        if not isinstance(raw, Mapping):
            raise ConfigError(f"the config is {raw!r}, not an object")
        for key, value in _FIXED.items():
            if key not in _FREE and raw.get(key, value) != value:
                remedy = ": `mobilemoe convert` reads such a model" if raw[key] in CONVERTIBLE else ""
                raise ConfigError(f"{key} is {raw[key]!r}, but only {value!r} is supported{remedy}")
        if any(rope != 1 for rope in _read_list(raw, "no_rope_layers")):
            raise ConfigError("no_rope_layers is not all 1, but every layer must have RoPE")
        own = ("raw", "expert_group_axis", "qk_norm", "rope_scaling", "layer_types", "eos_token_id")
        known = {entry.name: entry for entry in fields(cls) if entry.name not in own}
        values = {key: raw[key] for key in known if key in raw}
        for key, entry in known.items():
            if key not in values and entry.default is MISSING:
                raise ConfigError(f"{key} is missing")
        has_norm = raw.get("use_qk_norm", True)
        if not isinstance(has_norm, bool):
            raise ConfigError(f"use_qk_norm is {has_norm!r}, neither true nor false")
        values["qk_norm"] = raw.get("qk_norm", "head" if has_norm else "none")
        values["expert_group_axis"] = _read_group_axis(raw.get("quantization"))
        values["layer_types"] = _read_list(raw, "layer_types")
        theta, values["rope_scaling"] = read_rope(raw, values["layer_types"])
        values |= {} if theta is None else {"rope_theta": theta}
        eos = raw.get("eos_token_id")
        values["eos_token_id"] = (eos,) if isinstance(eos, int) else _read_list(raw, "eos_token_id")
        config = cls(**values, raw=dict(raw))
        if config.sliding_window is not None and not config._windows_are_told:
            raise ConfigError(
                f"sliding_window is {config.sliding_window}, but layer_types does not say which layers have that window"
            )
        if None not in (dtypes := (raw.get("dtype"), raw.get("torch_dtype"))) and dtypes[0] != dtypes[1]:
            raise ConfigError(f"dtype is {dtypes[0]!r}, but torch_dtype is {dtypes[1]!r}: they must say the same")
        check_foreign_keys(raw, config)
        return config

    @property
    def _rope(self) -> dict[str, Any]:
        return write_rope(self.rope_theta, self.rope_scaling)

    @property
    def _windows_are_told(self) -> bool:
        """Whether the file leaves no doubt about which layers have a window, if there is one."""
        window = self.sliding_window or 0
        off = self.raw.get("use_sliding_window") in (False,) or window >= self.max_position_embeddings
        return off or bool(self.raw.get("layer_types"))

    @property
    def unknown_keys(self) -> tuple[str, ...]:
        """Keys of the file of which nothing is known here; they are written back as they were."""
        known = {entry.name for entry in fields(self)} | _FIXED.keys() | _READ_KEYS | FOREIGN_KEYS | HARMLESS_KEYS
        return tuple(sorted(key for key in self.raw if key not in known))

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` object: the file as it was read, with only those keys replaced or added that have changed
        since.
        """
        canonical = self._canonical()
        if not self.raw:
            return canonical
        out, read = dict(self.raw), self._parse(self.raw)
        for entry in fields(self):
            if (
                entry.compare
                and entry.name not in self._rope
                and getattr(self, entry.name) != getattr(read, entry.name)
            ):
                for key in _KEYS_OF.get(entry.name, (entry.name,)):
                    if key in canonical:
                        out[key] = canonical[key]
                    else:
                        out.pop(key, None)
        if (self.rope_theta, self.rope_scaling) != (read.rope_theta, read.rope_scaling):
            names = out.keys() if out.get("rope_parameters") else ("rope_theta", "rope_scaling")
            out |= {key: value for key, value in self._rope.items() if key in names}
        for key, _ in list(foreign_faults(out, self)):  # these keys describe the model that was read, and not this one
            del out[key]
        return out

    def _canonical(self) -> dict[str, Any]:
        """Every key that spec 3.3 names, then those of 3.5 whose values differ from the family's."""
        out: dict[str, Any] = {
            **_FIXED,
            **{name: getattr(self, name) for name in _PLAIN_KEYS},
            "rope_scaling": self._rope["rope_scaling"],
            "no_rope_layers": [1] * self.num_hidden_layers,
            "layer_types": list(self.layer_types) or [FULL] * self.num_hidden_layers,
            "use_qk_norm": self.qk_norm != "none",
            "eos_token_id": list(self.eos_token_id),
        }
        if self.expert_group_axis is not None:
            out["quantization"] = {**_QUANTIZATION, "expert_group_axis": EXPERT_GROUP_AXIS[self.expert_group_axis]}
        for entry in fields(self):
            if entry.name in _EXTENSION_KEYS and getattr(self, entry.name) != entry.default:
                out[entry.name] = getattr(self, entry.name)
        if self.qk_norm in ("head_weight", "projection_weight"):
            out["qk_norm"] = self.qk_norm
        return out

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Reads `config.json` in `folder`."""
        path = Path(folder) / "config.json"
        return cls.from_dict(read_json(path, ConfigError, _MAX_BYTES), str(path))

    def save(self, folder: Path | str) -> None:
        """Writes `config.json` into `folder`, atomically."""
        write_json(Path(folder) / "config.json", self.to_dict())


_PLAIN_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "intermediate_size_mlp",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "num_local_experts",
    "num_experts_per_tok",
    "tie_word_embeddings",
    "routed_scaling_factor",
    "norm_topk_prob",
)
_EXTENSION_KEYS = (
    "ffn_type",
    "router_score",
    "attention_scale",
    "sliding_window",
    "bos_token_id",
    "eot_token_id",
    "header_start_token_id",
    "header_end_token_id",
)
_FLOAT_KEYS = ("routed_scaling_factor", "attention_scale", "rms_norm_eps", "rope_theta")
# Keys that are read besides those named as fields and those in _FIXED.
_READ_KEYS = frozenset(("dtype", "no_rope_layers", "quantization", "rope_parameters", "use_qk_norm"))
# Fields that are written under other keys than their names, or under several.
_KEYS_OF = {
    "num_hidden_layers": ("num_hidden_layers", "no_rope_layers", "layer_types"),
    "sliding_window": ("sliding_window", "layer_types"),
    "qk_norm": ("use_qk_norm", "qk_norm"),
    "expert_group_axis": ("quantization",),
}


def _read_list(raw: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    value = raw.get(key)
    if value is not None and not isinstance(value, list | tuple):
        raise ConfigError(f"{key} is {value!r}, not a list")
    return tuple(value or ())


def _read_group_axis(raw: Any) -> GroupAxis | None:
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ConfigError(f"quantization is {raw!r}, not an object")
    for key in ("bits", "mode", "quant_method"):  # the keys of other tools
        if key in raw:
            raise ConfigError(f"quantization.{key} is {raw[key]!r}, but only MobileMoE's own quantization is supported")
    for key, value in _QUANTIZATION.items():
        if raw.get(key, value) != value:
            raise ConfigError(f"quantization.{key} is {raw[key]!r}, but only {value!r} is supported")
    text = raw.get("expert_group_axis", EXPERT_GROUP_AXIS["out"])
    for axis, words in EXPERT_GROUP_AXIS.items():
        if text in (axis, words):
            return axis  # type: ignore[return-value]
    known = " nor ".join(map(repr, EXPERT_GROUP_AXIS.values()))
    raise ConfigError(f"quantization.expert_group_axis is {text!r}, neither {known}")
