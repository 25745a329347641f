"""Which experts of each layer stay, and into which of them the others are merged.

L layers, E experts, N experts that stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mobilemoe.config import ModelConfig
from mobilemoe.errors import UsageError
from mobilemoe.prune.use import Floats, Use

Ints = NDArray[np.int64]


def check_experts(config: ModelConfig, experts: int, name: str) -> None:
    """UsageError if the model `name` cannot keep this number of experts in each layer."""
    if not config.is_moe:
        raise UsageError(f"{name} is a dense model: it has no experts to drop")
    if experts >= config.num_local_experts:
        raise UsageError(f"experts is {experts}, but {name} has {config.num_local_experts} in a layer: give fewer")
    if experts < config.num_experts_per_tok:
        raise UsageError(
            f"experts is {experts}, but {name} sends each token to {config.num_experts_per_tok}: give at least as many"
        )


def best_experts(score_LE: Floats, experts: int) -> Ints:
    """kept_LN: in each layer the `experts` with the largest score, ties to the lowest index; in ascending order."""
    ranked_LE = np.argsort(-score_LE, axis=1, kind="stable")
    return np.sort(ranked_LE[:, :experts], axis=1)


@dataclass(frozen=True)
class Merge:
    """How experts are merged: `into_LE` is for each expert the one that stays and takes it up (itself, if it stays),
    `weight_LE` what it counts for.
    """

    into_LE: Ints
    weight_LE: Floats


def merge_into_nearest(use: Use, kept_LN: Ints) -> Merge:
    """Each expert goes into the one whose outputs are nearest to its own, and counts as often as it was chosen.

    `use` must have been measured with its distances.
    """
    assert use.distance_LEE is not None
    into_LE = np.tile(np.arange(use.chosen_LE.shape[1]), (len(kept_LN), 1))
    for layer, kept_N in enumerate(kept_LN):
        gone = np.setdiff1d(into_LE[layer], kept_N)
        into_LE[layer, gone] = kept_N[use.distance_LEE[layer][np.ix_(gone, kept_N)].argmin(axis=1)]
    return Merge(into_LE, use.chosen_LE)
