"""A model of ours as a plain Glm4MoeForCausalLM checkpoint in BF16, for runtimes that load no code of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import Checkpoint, Differences, Report, SafetensorsFile, int4, write_safetensors
from mobilemoe.checkpoint.companions import copy_companions
from mobilemoe.checkpoint.container import Spec
from mobilemoe.config import ModelConfig
from mobilemoe.errors import CheckpointError, UsageError
from mobilemoe.export.stock import check_family, matrices, output_rows, stock_name
from mobilemoe.files import atomic_folder, write_json
from mobilemoe.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
_WEIGHTS = "model.safetensors"


def write_glm4moe(folder: Path, out: Path) -> Report:
    """Writes the checkpoint in `folder` as the new folder `out`, tokenizer files beside it; reports the error.

    Weights are BF16, so that INT4 weights are rounded; those of the router and its bias are fp32. UsageError where
    Glm4Moe does not compute what the model does, CheckpointError as for Checkpoint.open, TokenizerError.
    """
    with Checkpoint.open(folder) as source:
        config = source.config
        check_family(config, "Glm4Moe")
        if config.intermediate_size_mlp % config.intermediate_size:
            raise UsageError(
                f"Glm4Moe has no shared expert of width {config.intermediate_size_mlp} beside routed ones of "
                f"{config.intermediate_size}: it must be a multiple"
            )
        if any(os.path.lexists(folder / name) for name in ("tokenizer.json", "tokenizer.model")):
            Tokenizer.load(folder)  # a damaged one is refused here, and not in the other runtime
        table = _tensors(source)
        specs: dict[str, Spec] = {
            name: ("F32" if ".mlp.gate." in name else "BF16", shape) for name, (_, _, shape) in table.items()
        }
        matrix = matrices(source)

        def exact(name: str) -> Floats:
            weight, expert, shape = table[name]
            if weight is None:
                return np.full(shape, 1.0 if "_norm" in name else 0.0, np.float32)
            w = matrix(weight) if expert is None else matrix(weight)[expert]
            if ".gate_proj" in name and expert is not None:
                w = w[: config.intermediate_size]
            elif ".up_proj" in name and expert is not None:
                w = w[config.intermediate_size :]
            return np.ascontiguousarray(w[output_rows(config, weight)])

        def produce(name: str) -> npt.NDArray[Any]:
            return exact(name) if specs[name][0] == "F32" else int4.to_bf16(exact(name))

        with atomic_folder(out, CheckpointError) as part:
            write_json(part / "config.json", glm4moe_config(config))
            write_safetensors(part / _WEIGHTS, specs, produce)
            copy_companions(folder, part)
        found = Differences()
        with SafetensorsFile(out / _WEIGHTS) as written:
            for name, (weight, _, _) in table.items():
                if weight is not None:
                    found.add(source.weights[weight].kind, exact(name), _read(written, name))
        return found.report()


def glm4moe_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of the same function in transformers' Glm4Moe."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": 1.0}
    if config.rope_scaling is not None:
        rope |= {"rope_type": "llama3", **vars(config.rope_scaling)}
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "dtype": "bfloat16",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,  # of dense layers, and there are none
        "moe_intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,  # this and the next for readers older than transformers 5
        "partial_rotary_factor": 1.0,
        "attention_bias": False,
        "use_qk_norm": True,
        "n_routed_experts": config.num_local_experts,
        "n_shared_experts": max(1, config.intermediate_size_mlp // config.intermediate_size),
        "num_experts_per_tok": config.num_experts_per_tok,
        "norm_topk_prob": config.norm_topk_prob,
        "routed_scaling_factor": config.routed_scaling_factor,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "num_nextn_predict_layers": 0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_id) or None,
    }


Place = tuple[str | None, int | None, tuple[int, ...]]  # our weight, the expert of it, the shape


def _tensors(source: Checkpoint) -> dict[str, Place]:
    """Where each tensor of the checkpoint comes from, by its name; a weight of None is a constant."""
    config, found = source.config, dict[str, Place]()
    d, width = config.hidden_size, config.intermediate_size
    for name, weight in source.weights.items():
        theirs = stock_name(name)
        if weight.storage != "experts":
            found[theirs] = (name, None, weight.shape)
            continue
        stem = theirs.rpartition(".")[0]
        parts = {"down": (d, width)} if name.endswith("down_proj") else {"gate": (width, d), "up": (width, d)}
        for expert in range(config.num_local_experts):
            for part, shape in parts.items():
                found[f"{stem}.{expert}.{part}_proj.weight"] = (name, expert, shape)
    for layer in range(config.num_hidden_layers):
        stem = f"model.layers.{layer}"
        if config.qk_norm == "head":
            for letter in "qk":
                found[f"{stem}.self_attn.{letter}_norm.weight"] = (None, None, (config.head_dim,))
        if not config.intermediate_size_mlp:
            for part, shape in {"gate": (width, d), "up": (width, d), "down": (d, width)}.items():
                found[f"{stem}.mlp.shared_experts.{part}_proj.weight"] = (None, None, shape)
    return found


def _read(file: SafetensorsFile, name: str) -> Floats:
    return int4.to_float32(file.array(name), file.tensors[name].dtype)
