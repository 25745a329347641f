"""`mobilemoe quantize`: a training run, or any model, as INT4."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.cli.convert import print_report, write
from mobilemoe.cli.options import JsonOption
from mobilemoe.config import GroupAxis
from mobilemoe.errors import TrainError
from mobilemoe.files import read_json
from mobilemoe.hub import find_model
from mobilemoe.quant.draft import trained_draft, write_with_draft


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
    training the result is exactly the model that was trained, learnt scales included. A run that trained a draft head
    gives the model that it was trained for, as it is, with draft.safetensors beside it.

    Example: mobilemoe quantize runs/finetune my-model
    """
    folder = find_model(source)
    newest = newest_model(folder)
    if trained_draft(newest):
        model = newest_model(find_model(_origin(folder)))
        layers = _recipe(folder, "draft").get("layers", ())
        print_report(target, write_with_draft(newest, model, target, cast(GroupAxis | None, group_axis), layers), json)
        return
    write(newest, target, "int4", group_axis or _trained_axis(folder) or "in", json)


def _trained_axis(run: Path) -> str | None:
    """The axis of the run's quantisation-aware training, if it had any."""
    axis = _recipe(run, "qat").get("group_axis")
    return None if axis is None else str(axis)


def _origin(run: Path) -> str:
    """The model that the run started from."""
    name = _recipe(run, "model").get("init")
    if not isinstance(name, str):
        raise TrainError(f"{run} holds a draft head, but its recipe.json does not say for which model")
    return name


def _recipe(run: Path, name: str) -> dict[str, Any]:
    """A table of the recipe that the run has kept; empty where there is none."""
    path = run / "recipe.json"
    recipe = read_json(path, TrainError) if path.exists() else {}
    table = recipe.get(name) if isinstance(recipe, dict) else None
    return table if isinstance(table, dict) else {}
