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
    source: Annotated[str, typer.Argument(metavar="RUN", help="A training run's folder, or a model.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; it must not exist.")],
    group_axis: Annotated[
        str | None,
        typer.Option(help="INT4 groups of the experts: 'in' or 'out'; by default the one the run was trained for."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Round a run's newest checkpoint to INT4 (nearest, scale amax / 7.5, groups of 32) and report the error.

    What quantisation-aware training has trained for comes out exactly, learnt scales included.

    Example: mobilemoe quantize runs/nano-cpu nano-int4
    """
    folder = find_model(source)
    write(newest_model(folder), target, "int4", group_axis or _trained_axis(folder) or "in", json)


def _trained_axis(run: Path) -> str | None:
    """The axis of the run's quantisation-aware training, if it had any."""
    path = run / "recipe.json"
    recipe = read_json(path, TrainError) if path.exists() else {}
    table = recipe.get("qat") if isinstance(recipe, dict) else None
    return str(table["group_axis"]) if isinstance(table, dict) and "group_axis" in table else None
