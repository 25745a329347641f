"""`mobilemoe train`: runs a recipe, or the four stages of a pipeline."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobilemoe.cli.options import JsonOption, SetOption, print_json, read_recipe
from mobilemoe.counted import counted
from mobilemoe.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from mobilemoe.train.pipeline import Stage


def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A recipe in TOML, such as recipes/nano-cpu.toml.")
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Run four stages: recipes/NAME-STAGE.toml for pretrain, midtrain, sft, qat."),
    ] = None,
    set_: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run (default: runs/NAME); with --pipeline, the parent of all runs."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the memory, time and FLOPs that it will take, without training.")
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="Price of one GPU for an hour, in any currency; the plan then shows a cost."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train a model by a recipe. The same command resumes where the last one stopped; Ctrl-C saves and exits with 0.

    --set train.validate_every=100 shows the loss on held-out text, and a sample, every 100 steps (0: never).

    With --pipeline, --set pretrain.train.steps=20 changes one stage and --set train.steps=20 all of them.

    Example: mobilemoe train recipes/nano-cpu.toml --set train.steps=200
    """
    stages = _stages(recipe, pipeline, set_, out)
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes one speaks
    if plan and not first:
        return
    if plan:
        values = []
        for stage in stages:
            estimate = stage.estimate(price)
            values.append(estimate.as_json())
            if not json:
                print(estimate)
    else:
        if json and first:  # without the estimate, which has them
            for note in (note for stage in stages for note in stage.notes):
                print(f"note: {note}", file=sys.stderr)
        values = _run(stages, price, quiet=json or not first, skip=pipeline is not None)
    if json and first:
        print_json({"stages": values} if pipeline else values[0])


def _stages(recipe: Path | None, pipeline: str | None, set_: list[str] | None, out: Path | None) -> list[Stage]:
    """What is to be trained, one stage for a recipe."""
    if (recipe is None) == (pipeline is None):
        raise UsageError("train takes a RECIPE or --pipeline NAME, and only one of them")
    try:
        from mobilemoe.train.pipeline import RUNS, Stage
        from mobilemoe.train.pipeline import pipeline as pipeline_of
    except ModuleNotFoundError as missing:
        raise MissingExtraError(f"training ({missing.name})", "train") from None
    if pipeline is not None:
        return pipeline_of(pipeline, tuple(set_ or ()), out or RUNS)
    assert recipe is not None
    loaded = read_recipe(recipe, set_)
    return [Stage.of(loaded, out or RUNS / loaded.name)]


def _run(stages: list[Stage], price: float | None, *, quiet: bool, skip: bool) -> list[dict[str, Any]]:
    """Trains one stage after the other until an interrupt; `skip` those that were finished before."""

    def say(text: object) -> None:
        if not quiet:
            print(text)

    ended: list[dict[str, Any]] = []
    for stage in stages:
        name = stage.recipe.name
        if skip and stage.finished:
            say(f"{name}: finished before, {counted(stage.steps_done, 'step')}")
            ended.append({"name": name, "steps": stage.steps_done, "finished": True, "folder": str(stage.run)})
            continue
        if not quiet:  # measuring the speed takes the device for a moment
            print(stage.estimate(price))
        result = stage.train()
        values: dict[str, Any] = {"steps": result.steps, "loss": result.loss, "finished": result.finished}
        if result.left_out:
            values["left_out"] = result.left_out
            say(f"note: {result.left_out}")
        held_out = ""
        if result.validation is not None:
            values["validation"] = result.validation
            held_out = f", held-out text {result.validation['bits_per_byte']:.3f} bits per byte"
        ended.append({"name": name, **values, "folder": str(result.checkpoint)})
        if not result.finished:
            steps = counted(result.steps, "step")
            say(f"saved after {steps}: {result.checkpoint}; the same command continues from there")
            return ended
        say(f"done after {counted(result.steps, 'step')}, loss {result.loss:.4f}{held_out}: {result.checkpoint}")
    last = stages[-1]
    axis = "" if last.recipe.qat is None else f" --group-axis {last.recipe.qat.group_axis}"
    say(f"next: mobilemoe quantize {last.run} OUT{axis}")
    return ended
