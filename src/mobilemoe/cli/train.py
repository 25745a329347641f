"""`mobilemoe train`: runs a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilemoe import accounting
from mobilemoe.cli.options import JsonOption, RecipeArgument, SetOption, print_json, read_recipe
from mobilemoe.errors import MissingExtraError
from mobilemoe.hub import find_model
from mobilemoe.tokenizer import Tokenizer


def train(
    recipe: RecipeArgument,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder (default: runs/NAME of the recipe).")] = None,
    json: JsonOption = False,
) -> None:
    """Train a model; the same command again goes on where the last one stopped. Ctrl-C saves and exits with 0.

    Example: mobilemoe train recipes/nano-cpu.toml --set train.steps=200
    """
    try:
        from mobilemoe.train.loop import model_config
        from mobilemoe.train.loop import train as run_training
    except ModuleNotFoundError as missing:
        raise MissingExtraError(f"training ({missing.name})", "train") from None
    loaded = read_recipe(recipe, set_)
    run = out or Path("runs") / loaded.name
    config = model_config(loaded, Tokenizer.load(find_model(loaded.tokenizer.path)))
    if not json:
        tokens = loaded.train.steps * loaded.train.batch_size * loaded.train.sequence_length
        flops = tokens * accounting.training_flops_per_token(config, loaded.train.sequence_length)
        print(
            f"{accounting.total_parameters(config) / 1e6:.1f} M parameters, "
            f"{accounting.active_parameters(config) / 1e6:.1f} M active; "
            f"{tokens / 1e6:.1f} M tokens, {flops:.2e} FLOPs; run folder {run}"
        )
    result = run_training(loaded, run)
    if json:
        print_json(
            {"steps": result.steps, "loss": result.loss, "finished": result.finished, "folder": str(result.checkpoint)}
        )
    elif result.finished:
        print(f"done after {result.steps} steps, loss {result.loss:.4f}: {result.checkpoint}")
        print(f"next: mobilemoe quantize {run} OUT")
    else:
        print(f"saved after {result.steps} steps: {result.checkpoint}; the same command goes on from there")
