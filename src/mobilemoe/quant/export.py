"""Writes INT4 files with scales that training learnt (LSQ, learnt step size quantisation).

Without learnt scales this module is not needed: `mobilemoe.checkpoint` rounds master weights to exactly the values that
`mobilemoe.quant.fake` trained with. It needs numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import Checkpoint, Report, compare, int4, weights
from mobilemoe.checkpoint.container import Array
from mobilemoe.checkpoint.layout import stored_tensors
from mobilemoe.checkpoint.writing import encoder, stored_config, write_folder
from mobilemoe.config import GROUP_SIZE, GroupAxis, ModelConfig
from mobilemoe.errors import CheckpointError
from mobilemoe.quant.extra import Floats, learnt_beside

_SMALLEST = np.float32(2.0**-24)  # the smallest positive fp16 number, so that a scale is never zero or negative


def learnt_scales(folder: Path) -> dict[str, Floats]:
    """The scales that a run's checkpoint stores beside its master weights, by their names in INT4 files.

    CheckpointError if their file is damaged.
    """
    return learnt_beside(folder, lambda name: name.endswith("_scale"))


def quantize_learnt(source: Path, target: Path, scales: Mapping[str, Floats], group_axis: GroupAxis) -> Report:
    """Writes a run's checkpoint as INT4 with its learnt scales, tokenizer files beside it; reports the error.

    CheckpointError as for `save_learnt`.
    """
    with Checkpoint.open(source) as master:
        save_learnt(target, master.config, master.weight, scales, group_axis=group_axis, beside=source)
        with Checkpoint.open(target) as result:
            return compare(master.weight, result)


def save_learnt(
    folder: Path | str,
    config: ModelConfig,
    weight: Callable[[str], Floats],
    scales: Mapping[str, Floats],
    *,
    group_axis: GroupAxis,
    beside: Path | None = None,
) -> None:
    """As `checkpoint.save_checkpoint` in INT4, but with the learnt scales where there are any.

    Also raises CheckpointError for scales beyond the range of fp16, and for scales of the other `group_axis` (which the
    shapes of gate_up and down reveal).
    """
    config = stored_config(config, "int4", group_axis)
    nearest = encoder(config, weight)
    owners = {name: owner for owner in weights(config).values() for name in stored_tensors(owner, group_axis)}

    def produce(stored: str) -> Array:
        owner = owners[stored]
        name = owner.int4_names[1]
        if name not in scales:
            return nearest(stored)
        scale = _stored_scale(name, scales[name], stored_tensors(owner, group_axis)[name][1], group_axis)
        if stored == name:
            return scale
        w = weight(owner.name)
        return _nibbles(int4.arrange_experts(w, group_axis) if owner.storage == "experts" else w, scale)

    write_folder(folder, config, produce, beside=beside)


def _stored_scale(name: str, learnt: Floats, shape: tuple[int, ...], group_axis: GroupAxis) -> npt.NDArray[np.float16]:
    if learnt.shape != shape:
        raise CheckpointError(
            f"{name} was learnt in the shape {list(learnt.shape)}, but the group axis {group_axis!r} asks for "
            f"{list(shape)}: give the axis of the run's recipe"
        )
    with np.errstate(over="ignore"):
        scale: npt.NDArray[np.float16] = np.maximum(learnt, _SMALLEST).astype(np.float16)
    if not np.isfinite(scale).all():
        raise CheckpointError(f"{name} holds scales that are not finite or exceed the range of fp16")
    return scale


def _nibbles(w: Floats, scale: npt.NDArray[np.float16]) -> npt.NDArray[np.uint8]:
    q = w.reshape(*scale.shape, GROUP_SIZE) / scale.astype(np.float32)[..., None]
    np.clip(np.rint(q, out=q), -8, 7, out=q)
    return int4.pack(q.astype(np.int8).reshape(w.shape))
