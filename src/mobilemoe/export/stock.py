"""What every stock architecture asks of a model of ours, and how our weights become its (spec section 2, last part).

Stock runtimes rotate pairs of dimensions half a head apart, where ours are neighbours, so the rows of q and k change
their order. They norm q and k before RoPE with a weight: a rotation keeps a norm, so a weight of ones is the same.
They always have a shared expert where they have any: a model without one gets one of zeros.
Legend: E experts, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import Checkpoint
from mobilemoe.config import ModelConfig
from mobilemoe.config_rules import FULL
from mobilemoe.errors import UsageError

Floats = npt.NDArray[np.float32]


def check_family(config: ModelConfig, target: str) -> None:
    """UsageError that names what in `config` no stock architecture of `target` computes."""
    reasons = {
        f"ffn_type is {config.ffn_type!r}": not config.is_moe,
        f"router_score is {config.router_score!r}": config.router_score != "sigmoid",
        f"qk_norm is {config.qk_norm!r}": config.qk_norm not in ("head", "head_weight"),
        f"attention_scale is {config.attention_scale}": config.attention_scale is not None,
        "some layers have sliding windows": any(kind != FULL for kind in config.layer_types),
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    if found is not None:
        raise UsageError(f"{target} has no stock architecture for this model: {found}")


def half_rotated(config: ModelConfig, heads: int) -> npt.NDArray[np.intp]:
    """The order of a projection's rows in which neighbouring pairs of each head come to stand half a head apart."""
    one_head = np.concatenate([np.arange(0, config.head_dim, 2), np.arange(1, config.head_dim, 2)])
    rows: npt.NDArray[np.intp] = (np.arange(heads)[:, None] * config.head_dim + one_head).reshape(-1)
    return rows


def output_rows(config: ModelConfig, name: str) -> npt.NDArray[np.intp] | slice:
    """The order in which stock architectures keep the outputs of the weight of canonical `name`."""
    if name.endswith(("q_norm.weight", "k_norm.weight")) and config.qk_norm == "head_weight":
        return half_rotated(config, 1)
    if name.endswith(("q_proj.weight", "q_norm.weight")):
        return half_rotated(config, config.num_attention_heads)
    if name.endswith(("k_proj.weight", "k_norm.weight")):
        return half_rotated(config, config.num_key_value_heads)
    return slice(None)


def stock_name(name: str) -> str:
    """What transformers calls the weight of canonical `name`, or the stem of its experts' names."""
    theirs = name.replace(".feed_forward.", ".mlp.").replace(".shared_expert.", ".shared_experts.")
    theirs = theirs.replace(".router.weight", ".gate.weight")
    return theirs.replace(".expert_bias", ".gate.e_score_correction_bias")


def matrices(source: Checkpoint) -> Callable[[str], Floats]:
    """Gives the weight of a canonical name as stock architectures keep it, in our order of outputs.

    A matrix is [O, I], a stack of experts [E, O, I]. The last two are kept and must not be changed: other formats hold
    the experts of a layer one by one, and so ask for parts of its two stacks in turn.
    """

    @lru_cache(maxsize=2)
    def matrix(name: str) -> Floats:
        w = source.weight(name)
        return w.swapaxes(1, 2) if source.weights[name].storage == "experts" else w

    return matrix
