"""The recipe that a run keeps beside its checkpoints: a run is resumed only by that recipe, or a longer one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.errors import TrainError
from mobilemoe.files import read_json
from mobilemoe.train.recipe import Recipe

RECIPE_FILE = "recipe.json"

# What may change when a run is resumed: how long, how fast and in how much memory it trains, how often it is saved and
# validated, and where its files lie.
# Whether those are the same files is the loader's to say.
_FREE = {
    "name",
    *("data.path", "tokenizer.path"),
    *(f"train.{entry}" for entry in ("steps", "threads", "compile", "checkpoint_every", "keep_checkpoints")),
    *(f"train.{entry}" for entry in ("log_every", "validate_every", "validate_tokens")),
    *(f"train.{entry}" for entry in ("micro_batch_size", "activation_checkpointing", "deterministic")),
    *("distributed.replicate", "distributed.expert_parallel"),
}


def kept_recipe(run: Path) -> Recipe | None:
    """The recipe of the checkpoints in `run`; None where there are none, or no recipe. TrainError for a damaged one."""
    path = run / RECIPE_FILE
    if not step_folders(run) or not path.exists():
        return None
    try:
        return Recipe.model_validate(read_json(path, TrainError))
    except ValidationError as fault:
        entry = ".".join(map(str, fault.errors()[0]["loc"]))
        raise TrainError(f"{path} is no recipe of this version ({entry}): remove it to go on without it") from None


def refuse_other(recipe: Recipe, run: Path) -> None:
    """Raises TrainError that names each difference if `run` has checkpoints that another recipe has trained.

    A run without recipe.json is not compared.
    """
    kept = kept_recipe(run)
    if kept is None:
        return
    before, now = (dict(_entries(one.model_dump(mode="json"))) for one in (kept, recipe))
    free = _FREE if recipe.lora is None else {*_FREE, "model.init"}  # of adapters the checkpoint knows the weights
    differing = [entry for entry in {**before, **now} if entry not in free and before.get(entry) != now.get(entry)]
    if differing:
        each = (f"{entry} was {_said(before, entry)} and is {_said(now, entry)}" for entry in differing)
        raise TrainError(
            f"{run} was trained by another recipe: {', '.join(each)}; give this one another --out, "
            f"or remove {run / RECIPE_FILE} to continue with the new numbers nevertheless"
        )


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested tables by their dotted names; those that are not set are left out."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _entries(below, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for number, part in enumerate(value):
            yield from _entries(part, f"{name}.{number}")
    elif value is not None:
        yield name, value


def _said(entries: dict[str, Any], entry: str) -> str:
    return repr(entries[entry]) if entry in entries else "not set"
