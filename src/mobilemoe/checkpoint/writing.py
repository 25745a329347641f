"""Writing a checkpoint folder in one step: config, tensors in one file or in shards, and what belongs beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from mobilemoe.checkpoint import int4
from mobilemoe.checkpoint.companions import copy_companions
from mobilemoe.checkpoint.container import Array, Spec, is_finite, payload_bytes, shorten, write_safetensors
from mobilemoe.checkpoint.draft import copy_draft
from mobilemoe.checkpoint.folder import COMPANION_HASH, INDEX, WEIGHTS, Floats
from mobilemoe.checkpoint.layout import stored_tensors, tensor_table, weights
from mobilemoe.config import GroupAxis, ModelConfig
from mobilemoe.errors import CheckpointError, UsageError
from mobilemoe.files import atomic_folder, sha256_file, write_json

Format: TypeAlias = Literal["int4", "bf16"]


def save_checkpoint(
    folder: Path | str,
    config: ModelConfig,
    weight: Callable[[str], Floats],
    *,
    format: Format,
    group_axis: GroupAxis = "in",
    shard_bytes: int | None = None,
) -> None:
    """Writes a checkpoint folder in one step from `weight`, which gives logical fp32 arrays by canonical name.

    One weight is held at a time; those that become INT4 are asked for twice, once for the scales and once for the
    nibbles, and must be the same each time. `group_axis` is that of the experts in INT4. With `shard_bytes`, files
    hold no more payload than that, or one tensor. CheckpointError if `folder` exists or a weight does not fit.
    """
    config = stored_config(config, format, group_axis)
    write_folder(folder, config, encoder(config, weight), shard_bytes=shard_bytes)


def stored_config(config: ModelConfig, format: Format, group_axis: GroupAxis) -> ModelConfig:
    """`config` as it is stored with weights in `format`."""
    if format not in ("int4", "bf16"):
        raise UsageError(f"format is {format!r}, but must be 'int4' or 'bf16'")
    if group_axis not in ("in", "out"):
        raise UsageError(f"group_axis is {group_axis!r}, but must be 'in' or 'out'")
    return dataclasses.replace(config, expert_group_axis=group_axis if format == "int4" else None)


def encoder(config: ModelConfig, weight: Callable[[str], Floats]) -> Callable[[str], Array]:
    """A function that gives a stored tensor by name, in `config`'s format, from logical weights by canonical name."""
    axis = config.expert_group_axis
    owners = {stored: owner for owner in weights(config).values() for stored in stored_tensors(owner, axis)}

    def produce(stored: str) -> Array:
        owner = owners[stored]
        w = np.asarray(weight(owner.name), np.float32)
        if w.shape != owner.shape:
            raise CheckpointError(f"{owner.name} is given as {list(w.shape)}, but the config asks for {owner.shape}")
        if axis is None or not owner.is_quantizable:
            return w if owner.storage == "router" else int4.to_bf16(w)
        if owner.storage == "experts":
            w = int4.arrange_experts(w, axis)
        if stored == owner.int4_names[1]:
            return int4.scales(w, owner.name)
        return int4.quantize(w, owner.name)[0]

    return produce


def write_folder(
    folder: Path | str,
    config: ModelConfig,
    produce: Callable[[str], Array],
    *,
    shard_bytes: int | None = None,
    beside: Path | None = None,
) -> None:
    """Writes config, the tensors that `produce` gives by stored name, and what belongs to the model `beside`."""
    table = tensor_table(config)

    def finite(name: str) -> Array:
        array = produce(name)
        if not is_finite(array, table[name][0]):
            source = "" if beside is None else f"{beside}: "
            raise CheckpointError(f"{source}{shorten(name)} holds NaN or infinity, with which no model can compute")
        return array

    with atomic_folder(folder, CheckpointError) as part:
        config.save(part)
        shards = _split(table, shard_bytes)
        if len(shards) > 1:
            total = sum(payload_bytes(spec) for spec in table.values())
            weight_map = {name: shard for shard, specs in shards.items() for name in specs}
            write_json(part / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        metadata = {COMPANION_HASH + path.name: sha256_file(path) for path in sorted(part.iterdir())}
        for shard, specs in shards.items():
            write_safetensors(part / shard, specs, finite, metadata)
        if beside is not None:
            copy_companions(beside, part)
            copy_draft(beside, part, config)


def _split(table: dict[str, Spec], shard_bytes: int | None) -> dict[str, dict[str, Spec]]:
    """The tensors of each file, in the order of the table."""
    groups: list[dict[str, Spec]] = [{}]
    filled = 0
    for name, spec in table.items():
        if shard_bytes is not None and groups[-1] and filled + payload_bytes(spec) > shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = spec
        filled += payload_bytes(spec)
    if len(groups) == 1:
        return {WEIGHTS: table}
    return {f"model-{at:05d}-of-{len(groups):05d}.safetensors": group for at, group in enumerate(groups, 1)}
