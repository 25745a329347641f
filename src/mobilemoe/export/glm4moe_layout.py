"""How a model stands in a checkpoint of transformers' Glm4Moe: its config.json, and which tensor is which weight.

Legend: E experts, O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import weights
from mobilemoe.config import ModelConfig
from mobilemoe.errors import UsageError
from mobilemoe.export.stock import check_family, output_rows, stock_name


@dataclass(frozen=True)
class Tensor:
    """One tensor of the checkpoint: the outputs `rows` of our weight `weight`, or if that is None `fill` everywhere.

    Of a stack of experts it is the one numbered `expert`, [O, I], or if that is None all of them, [E, O, I].
    """

    shape: tuple[int, ...]
    weight: str | None = None
    expert: int | None = None
    rows: npt.NDArray[np.intp] | slice | None = None  # None: all
    fill: float = 0.0


def check_fits(config: ModelConfig) -> None:
    """UsageError that names what in `config` Glm4Moe does not compute."""
    check_family(config, "Glm4Moe")
    if config.intermediate_size_mlp % config.intermediate_size:
        raise UsageError(
            f"Glm4Moe has no shared expert of width {config.intermediate_size_mlp} beside routed ones of "
            f"{config.intermediate_size}: it must be a multiple"
        )


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


def tensors(config: ModelConfig, *, stacked: bool = False) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its name, the experts of a layer one by one or `stacked`.

    The head is there even if it is the embedding: vLLM, SGLang and MLX-LM tie no weights in this architecture.
    """
    found: dict[str, Tensor] = {}
    d, width = config.hidden_size, config.intermediate_size
    for name, weight in weights(config).items():
        theirs = stock_name(name)
        if weight.storage != "experts":
            found[theirs] = Tensor(weight.shape, name, rows=output_rows(config, name))
            continue
        stem = theirs.rpartition(".")[0]
        halves = {"gate": slice(None, width), "up": slice(width, None)}  # of the fused matrix, the first half is gate
        parts = {"down": None} if name.endswith("down_proj") else halves
        for part, rows in parts.items():
            shape = (d, width) if part == "down" else (width, d)
            if stacked:
                found[f"{stem}.{part}_proj.weight"] = Tensor((weight.shape[0], *shape), name, rows=rows)
                continue
            for expert in range(weight.shape[0]):
                found[f"{stem}.{expert}.{part}_proj.weight"] = Tensor(shape, name, expert, rows)
    for layer in range(config.num_hidden_layers):
        stem = f"model.layers.{layer}"
        if config.qk_norm == "head":
            for letter in "qk":
                found[f"{stem}.self_attn.{letter}_norm.weight"] = Tensor((config.head_dim,), fill=1.0)
        if not config.intermediate_size_mlp:
            for part, shape in {"gate": (width, d), "up": (width, d), "down": (d, width)}.items():
                found[f"{stem}.mlp.shared_experts.{part}_proj.weight"] = Tensor(shape)
    if config.tie_word_embeddings:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found
