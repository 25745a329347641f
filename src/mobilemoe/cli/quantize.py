"""`mobilemoe quantize`: a training run, or any model, as INT4."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.cli.convert import write
from mobilemoe.cli.options import JsonOption
from mobilemoe.errors import TrainError
from mobilemoe.files import read_json
from mobilemoe.hub import find_model


def quantize(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A training run's folder, or any model.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create; it must not exist.")],
    group_axis: Annotated[
        str | None,
        typer.Option(
            help="Direction of the experts' INT4 groups: 'in' or 'out' (default: what the run was trained for)."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Turn a training run's newest checkpoint, or any model, into an INT4 model, and report the rounding error.

    Weights are rounded to nearest in groups of 32, with scale = largest magnitude / 7.5. After quantisation-aware
    training the result is exactly the model that was trained, learnt scales included.

    Example: mobilemoe quantize runs/finetune my-model
    """
    folder = find_model(source)
    write(newest_model(folder), target, "int4", group_axis or _trained_axis(folder) or "in", json)


def _trained_axis(run: Path) -> str | None:
    """The axis of the run's quantisation-aware training, if it had any."""
    path = run / "recipe.json"
    recipe = read_json(path, TrainError) if path.exists() else {}
    table = recipe.get("qat") if isinstance(recipe, dict) else None
    return str(table["group_axis"]) if isinstance(table, dict) and "group_axis" in table else None
