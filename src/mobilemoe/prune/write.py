"""Writes a model with some of its experts in the published layout; what stays is moved byte for byte.

E experts, N experts that stay, D hidden, F expert width; [E, I, O] an expert weight of either kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mobilemoe.checkpoint import Checkpoint, Weight, int4, weights
from mobilemoe.checkpoint.container import Array
from mobilemoe.checkpoint.convert import unchanged
from mobilemoe.checkpoint.layout import stored_tensors
from mobilemoe.checkpoint.writing import encoder, write_folder
from mobilemoe.errors import MissingExtraError
from mobilemoe.prune.choice import Ints, Merge

Weights = NDArray[np.float32]


def write_pruned(source: Checkpoint, target: Path | str, kept_LN: Ints, merge: Merge | None = None) -> None:
    """Writes `source` with the experts kept_LN[layer] of each layer as the new folder `target`, in the same format.

    The router loses the rows, and the selection bias the entries, of the experts that go. With `merge` these are
    averaged into those that stay; only experts that took others up are rounded again, to INT4 or BF16. CheckpointError
    if `target` exists.
    """
    config = dataclasses.replace(source.config, num_local_experts=kept_LN.shape[1])
    axis = config.expert_group_axis
    merged = None if merge is None else _Merged(source, kept_LN, merge)
    owners = {stored: weight for weight in weights(source.config).values() for stored in stored_tensors(weight, axis)}
    copied = unchanged(source, axis)

    def kept(weight: Weight, all_E: Array) -> Array:
        layer = _layer_of(weight)
        return all_E if layer is None else all_E[kept_LN[layer]]

    encode = encoder(config, lambda name: kept(source.weights[name], source.weight(name)))

    def produce(stored: str) -> Array:
        weight = owners[stored]
        stays = kept(weight, source.array(stored)) if stored in copied else encode(stored)
        if merged is None or weight.storage != "experts":
            return stays
        return merged.put_into(weight, stored, stays)

    write_folder(Path(target), config, produce, beside=source.folder)


def _layer_of(weight: Weight) -> int | None:
    """The layer of a weight that has one row or matrix for each expert; None for all others."""
    return int(weight.name.split(".")[2]) if weight.kind in ("router", "routed") else None


class _Merged:
    """The experts that take others up. Those of one layer are computed at a time."""

    def __init__(self, source: Checkpoint, kept_LN: Ints, merge: Merge) -> None:
        self._source, self._kept_LN, self._merge = source, kept_LN, merge
        self._layer: int | None = None
        self._experts: dict[int, tuple[Weights, Weights]] = {}

    def put_into(self, weight: Weight, stored: str, stays: Array) -> Array:
        """A stored tensor of the experts that stay, with those replaced that have taken others up."""
        layer, axis = _layer_of(weight), self._source.config.expert_group_axis
        assert layer is not None
        if layer != self._layer:
            self._layer, self._experts = layer, self._average(layer)
        stays = stays.copy()
        for place, pair in self._experts.items():
            w_IO = pair[0 if weight.name.endswith("gate_up_proj") else 1]
            if axis is None:
                stays[place] = int4.to_bf16(w_IO)
                continue
            rows = int4.arrange_experts(w_IO[None], axis)[0]
            nibbles, scales = int4.quantize(rows, weight.name)
            stays[place] = nibbles if stored == weight.int4_names[0] else scales
        return stays

    def _average(self, layer: int) -> dict[int, tuple[Weights, Weights]]:
        """gate_up_D2F and down_FD of each expert that takes others up, by its place among those that stay."""
        stem = f"model.layers.{layer}.feed_forward.experts"
        gate_up_ED2F, down_EFD = (self._source.weight(f"{stem}.{name}_proj") for name in ("gate_up", "down"))
        found = {}
        for place, expert in enumerate(self._kept_LN[layer]):
            members = np.flatnonzero(self._merge.into_LE[layer] == expert)
            share = self._merge.weight_LE[layer, members]
            if len(members) == 1 or not share.sum():
                continue
            gate_up_D2F, down_FD = np.zeros_like(gate_up_ED2F[0]), np.zeros_like(down_EFD[0])
            own = gate_up_ED2F[expert], down_EFD[expert]
            for member, part in zip(members, (share / share.sum()).astype(np.float32), strict=True):
                aligned = align_units(own, (gate_up_ED2F[member], down_EFD[member]))
                gate_up_D2F += part * aligned[0]
                down_FD += part * aligned[1]
            found[place] = gate_up_D2F, down_FD
        return found


def align_units(to: tuple[Weights, Weights], other: tuple[Weights, Weights]) -> tuple[Weights, Weights]:
    """`other`, a pair of gate_up_D2F and down_FD, with its F hidden units in the order that fits those of `to` best.

    The order of an expert's units means nothing, so an average without this would mix units that have nothing in common
    (git re-basin, arXiv 2209.04836: the order with the largest sum of products of matched units' weights).
    """
    units, others = _units(*to), _units(*other)
    _, order_F = assignment()(units @ others.T, maximize=True)
    gate_DF, up_DF = np.split(other[0], 2, axis=1)
    return np.concatenate((gate_DF[:, order_F], up_DF[:, order_F]), axis=1), other[1][order_F]


def assignment() -> Callable[..., tuple[Ints, Ints]]:
    """SciPy's solver; MissingExtraError without it, so that a caller can ask before long work."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError:
        raise MissingExtraError("merging experts", "scaling") from None
    return cast(Callable[..., tuple[Ints, Ints]], linear_sum_assignment)


def _units(gate_up_D2F: Weights, down_FD: Weights) -> Weights:
    """All weights of each hidden unit, [F, 3 D]."""
    gate_DF, up_DF = np.split(gate_up_D2F, 2, axis=1)
    return np.concatenate((gate_DF.T, up_DF.T, down_FD), axis=1)
