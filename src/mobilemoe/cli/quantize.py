"""`mobilemoe quantize`: a training run, or any model, as INT4."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.cli.convert import write
from mobilemoe.cli.options import GroupAxisOption, JsonOption
from mobilemoe.hub import find_model


def quantize(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A training run's folder, or a model.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; it must not exist.")],
    group_axis: GroupAxisOption = "in",
    json: JsonOption = False,
) -> None:
    """Round a run's newest checkpoint to INT4 (nearest, scale amax / 7.5, groups of 32) and report the error.

    Example: mobilemoe quantize runs/nano-cpu nano-int4
    """
    write(newest_model(find_model(source)), target, "int4", group_axis, json)
