"""Where a training run keeps its checkpoints: RUN/checkpoints/step-00000500, each a model folder."""

from __future__ import annotations

import re
from pathlib import Path

_STEP = re.compile(r"step-(\d{8})")


def step_folder(run: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_folders(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if _STEP.fullmatch(path.name))


def newest_model(folder: Path) -> Path:
    """The newest checkpoint if `folder` is a run, else `folder` itself."""
    steps = step_folders(folder)
    return steps[-1] if steps and not (folder / "config.json").exists() else folder
