"""What training learnt beside the weights: a run's checkpoint keeps it in a file of its own. It needs numpy only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import SafetensorsFile, int4
from mobilemoe.errors import CheckpointError

Floats: TypeAlias = npt.NDArray[np.float32]

_EXTRA = "extra.safetensors"


def learnt_beside(step: Path, wanted: Callable[[str], bool]) -> dict[str, Floats]:
    """The `wanted` tensors, by name, that the checkpoint `step` of a run stores beside its weights; maybe none.

    CheckpointError if their file is damaged.
    """
    path = step / _EXTRA
    if not path.exists():
        return {}
    with SafetensorsFile(path) as file:
        if file.verify() is False:
            raise CheckpointError(f"{path} is damaged")
        names = [name for name in file.tensors if wanted(name)]
        return {name: int4.to_float32(file.array(name), file.tensors[name].dtype) for name in names}
