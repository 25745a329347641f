"""The config of the model in a GGUF file: read from its keys, then held against what an export of it would hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mobilemoe.config import ModelConfig
from mobilemoe.config_rope import RopeScaling
from mobilemoe.errors import CheckpointError, ConfigError
from mobilemoe.export.gguf_layout import SCALING_KEYS, architecture, metadata, rope_factors, tensors
from mobilemoe.imports.gguf_file import GgufFile
from mobilemoe.tokenizer import Tokenizer

_ARCHITECTURES = ("glm4moe", "exaone-moe")
_OFF = {"nextn_predict_layers": (0,), "expert_group_count": (0, 1), "expert_group_used_count": (0, 1)}  # harmless so
_LISTED = 4  # names in a message


def read_config(file: GgufFile, tokenizer: Tokenizer) -> ModelConfig:
    """The config of the model in `file`, its weights not quantised; its tensors are those of this config.

    CheckpointError or ConfigError names the file and the key or tensor of what is not computed here.
    """
    arch = file.keys.get("general.architecture")
    if arch not in _ARCHITECTURES:
        known = " and ".join(_ARCHITECTURES)
        raise CheckpointError(f"{file.path}: general.architecture is {arch!r}, but only {known} are read here")
    try:
        config = _config(file, arch, tokenizer)
    except ConfigError as fault:
        raise ConfigError(f"{file.path}: {fault}") from None
    if (expected := architecture(config)) != arch:
        raise CheckpointError(f"{file.path}: general.architecture is {arch}, but this model's would be {expected}")
    _check_keys(file, metadata(config, arch), arch)
    _check_tensors(file, config)
    if config.rope_scaling is not None:
        wanted = rope_factors(config)
        if not np.allclose(file.floats("rope_freqs.weight"), wanted, rtol=1e-5, atol=0):
            raise CheckpointError(
                f"{file.path}: rope_freqs.weight holds other factors than {SCALING_KEYS} = {config.rope_scaling} gives"
            )
    return config


def _config(file: GgufFile, arch: str, tokenizer: Tokenizer) -> ModelConfig:
    def number(key: str, *kinds: type) -> Any:
        return _value(file, f"{arch}.{key}", *(kinds or (int,)))

    width, layers = number("expert_feed_forward_length"), number("block_count")
    if layers > len(file.tensors):
        raise CheckpointError(f"{file.path}: {arch}.block_count is {layers}, but there are {len(file.tensors)} tensors")
    if arch == "glm4moe":
        shared = number("expert_shared_count") * width
    else:
        shared = number("expert_shared_feed_forward_length")
    heads, size, d = number("attention.head_count"), number("attention.key_length"), number("embedding_length")
    # What these sizes claim is bounded by tensors that are there, before arrays of such sizes are made.
    _check_shape(file, "token_embd.weight", (number("vocab_size"), d))
    _check_shape(file, "blk.0.attn_q.weight", (heads * size, d))
    config = ModelConfig(
        vocab_size=number("vocab_size"),
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=number("attention.head_count_kv"),
        head_dim=size,
        intermediate_size=width,
        intermediate_size_mlp=shared,
        num_local_experts=number("expert_count"),
        num_experts_per_tok=number("expert_used_count"),
        norm_topk_prob=number("expert_weights_norm", bool),
        routed_scaling_factor=number("expert_weights_scale", int, float),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon", int, float),
        rope_theta=number("rope.freq_base", int, float),
        rope_scaling=_scaling(file),
        max_position_embeddings=number("context_length"),
        tie_word_embeddings=_is_tied(file, arch),
        bos_token_id=tokenizer.bos_id,
        eos_token_id=_stops(file),
        eot_token_id=tokenizer.eot_id,
        header_start_token_id=tokenizer.header_start_id,
        header_end_token_id=tokenizer.header_end_id,
    )
    norms = [name for name in file.tensors if name.endswith(("attn_q_norm.weight", "attn_k_norm.weight"))]
    if any((file.floats(name) != 1).any() for name in norms):
        config = dataclasses.replace(config, qk_norm="head_weight")
    shared_experts = [name for name in file.tensors if name.endswith("_shexp.weight")]
    if shared_experts and not any(file.floats(name).any() for name in shared_experts):
        config = dataclasses.replace(config, intermediate_size_mlp=0)
    return config


def _value(file: GgufFile, key: str, *kinds: type) -> Any:
    if key not in file.keys:
        raise CheckpointError(f"{file.path} lacks the key {key}")
    value = file.keys[key]
    if type(value) not in kinds:  # not isinstance: true is an int to Python
        raise CheckpointError(f"{file.path}: {key} is {value!r:.60}, not of the type {kinds[-1].__name__}")
    return value


def _scaling(file: GgufFile) -> RopeScaling | None:
    """Of the keys that our export writes beside the factors; without them, the family's own scaling is tried."""
    if "rope_freqs.weight" not in file.tensors:
        return None
    prefix = f"{SCALING_KEYS}."
    given = {key.removeprefix(prefix): value for key, value in file.keys.items() if key.startswith(prefix)}
    if not given:
        return RopeScaling()
    names = [field.name for field in dataclasses.fields(RopeScaling)]
    return RopeScaling(**{name: _value(file, prefix + name, int, float) for name in names})


def _is_tied(file: GgufFile, arch: str) -> bool:
    """Whether the output matrix is the embedding; exaone-moe keeps it twice."""
    if "output.weight" not in file.tensors or arch == "glm4moe":
        return "output.weight" not in file.tensors
    embedding, output = (file.array(f"{name}.weight") for name in ("token_embd", "output"))
    return embedding.dtype == output.dtype and np.array_equal(embedding, output)


def _stops(file: GgufFile) -> tuple[int, ...]:
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    return tuple(sorted({_value(file, key, int) for key in keys if key in file.keys}))


def _check_keys(file: GgufFile, expected: dict[str, Any], arch: str) -> None:
    for name, wanted in expected.items():
        value = _value(file, f"{arch}.{name}", *((int, float) if type(wanted) is float else (type(wanted),)))
        same = np.float32(value) == np.float32(wanted) if type(wanted) is float else value == wanted
        if not same:
            raise CheckpointError(f"{file.path}: {arch}.{name} is {value!r:.60}, but only {wanted!r:.60} is read here")
    for key, value in file.keys.items():
        name = key.removeprefix(f"{arch}.")
        if name != key and name not in expected and value not in _OFF.get(name, ()):
            raise CheckpointError(f"{file.path}: {key} is {value!r:.60}, a key that is not read here")


def _check_tensors(file: GgufFile, config: ModelConfig) -> None:
    """All tensors that an export of `config` has are there, and no other."""
    rest = set(file.tensors)
    for tensor in tensors(config):
        _check_shape(file, tensor.name, tensor.shape)
        rest.discard(tensor.name)
    if rest:
        names = ", ".join(sorted(rest)[:_LISTED])
        raise CheckpointError(f"{file.path} holds tensors that this model does not have: {names}")


def _check_shape(file: GgufFile, name: str, shape: tuple[int, ...]) -> None:
    if name not in file.tensors:
        raise CheckpointError(f"{file.path} holds no tensor {name}")
    if (found := file.tensors[name].shape) != shape:
        raise CheckpointError(f"{file.path}: tensor {name} is {list(found)}, but the keys ask for {list(shape)}")
