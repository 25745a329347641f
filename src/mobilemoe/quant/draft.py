"""Puts a trained draft head beside the INT4 model that it was trained for. It needs numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mobilemoe.checkpoint import Checkpoint, Report, convert
from mobilemoe.checkpoint.draft import DRAFT, write_draft
from mobilemoe.config import GroupAxis
from mobilemoe.errors import CheckpointError
from mobilemoe.files import refuse_existing, scratch_folder
from mobilemoe.quant.extra import Floats, learnt_beside

_PREFIX = "draft."
_SHORTLIST = "shortlist_K"


def trained_draft(step: Path) -> dict[str, Floats]:
    """The tensors of the draft head in a run's checkpoint, by their names within the head; empty if it has none.

    CheckpointError if their file is damaged.
    """
    found = learnt_beside(step, lambda name: name.startswith(_PREFIX))
    return {name.removeprefix(_PREFIX): tensor for name, tensor in found.items()}


def write_with_draft(
    step: Path, model: Path, target: Path, group_axis: GroupAxis | None, layers: Sequence[int] = ()
) -> Report:
    """Writes `model` as the new INT4 folder `target`, with the draft head of the checkpoint `step` beside it.

    INT4 weights stay as they are; `group_axis` None keeps that of their experts too. `layers` are those of the model
    that the head reads. CheckpointError if it was trained for other weights than those of `model`.
    """
    refuse_existing(target, CheckpointError)
    trained = trained_draft(step)
    shortlist_K = trained.pop(_SHORTLIST).astype(np.int64)
    with Checkpoint.open(model) as ours, Checkpoint.open(step) as theirs:
        same = ours.names == theirs.names
        if not same or not all(np.array_equal(ours.weight(name), theirs.weight(name)) for name in ours.names):
            raise CheckpointError(f"{step} holds a draft head for other weights than those of {model}")
        axis = group_axis or ours.config.expert_group_axis or "in"
    with scratch_folder() as scratch:  # so that `target` appears with its draft head, or not at all
        report = convert(model, scratch / "model", format="int4", group_axis=axis)
        write_draft(scratch / "model" / DRAFT, lambda name: trained[f"{name}.weight"], shortlist_K, layers)
        convert(scratch / "model", target, format="int4", group_axis=axis)
    return report
