"""The four training stages in order: the run of each, which ones are finished, and what each one starts from."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.config import ModelConfig
from mobilemoe.counted import counted
from mobilemoe.errors import ConfigError, TrainError
from mobilemoe.files import read_json
from mobilemoe.train.estimate import Estimate, architecture, estimate_run, recipe_notes
from mobilemoe.train.loop import Result, train
from mobilemoe.train.recipe import Recipe, load_recipe

STAGES = ("pretrain", "midtrain", "sft", "qat")
RUNS = Path("runs")  # below the current folder


@dataclass(frozen=True)
class Stage:
    """A recipe, the folder of its run, and the architecture of its model."""

    recipe: Recipe
    run: Path
    config: ModelConfig

    @classmethod
    def of(cls, recipe: Recipe, run: Path) -> Stage:
        """A recipe as a stage. Raises TrainError if it starts from a run that does not exist or is not finished."""
        check_origin(recipe)
        return cls(recipe, run, architecture(recipe.model))

    @property
    def steps_done(self) -> int:
        """Steps of the run's newest checkpoint; 0 where there is none."""
        return _newest_step(self.run)

    @property
    def finished(self) -> bool:
        return self.steps_done >= self.recipe.train.steps

    @property
    def notes(self) -> list[str]:
        """Sentences about entries of the recipe that look like mistakes."""
        return recipe_notes(self.recipe)

    def estimate(self, price: float | None = None) -> Estimate:
        """What training the stage will take; `price` is that of one device for an hour."""
        return estimate_run(self.recipe, self.config, self.run, self.steps_done, price)

    def train(self) -> Result:
        """Trains the stage, or the rest of it, and frees the memory of the stage before."""
        check_origin(self.recipe)  # only now, since in a pipeline the stage before has to run first
        # Code compiled for that one would count towards this one's recompilation limit and keep its weights. Nothing is
        # freed after a stage: where one of several processes has failed, communicators would wait for it.
        torch.compiler.reset()
        gc.collect()
        return train(self.recipe, self.run)


def pipeline(name: str, overrides: tuple[str, ...] = (), out: Path = RUNS) -> list[Stage]:
    """The stages of `recipes/NAME-STAGE.toml`, each starting from the run before it, in folders below `out`.

    An override may begin with a stage's name, "pretrain.train.steps=20"; others go to every stage. The table [qat]
    exists in its own stage only: "qat.group_axis=out" is meant for that. Raises ConfigError where a recipe is missing.
    """
    stages: list[Stage] = []
    for stage in STAGES:
        path = Path("recipes") / f"{name}-{stage}.toml"
        if not path.is_file():
            raise ConfigError(f"there is no {path}: a pipeline needs a recipe for each of {', '.join(STAGES)}")
        follow = _following(path, stages[-1].run) if stages else ()  # before the user's own overrides, which win
        recipe = load_recipe(path, (*follow, *_overrides_of(stage, overrides)))
        run = out / recipe.name
        if stages and recipe.model.init == str(stages[-1].run):
            stages.append(Stage(recipe, run, stages[-1].config))  # which need not exist yet
        else:
            stages.append(Stage.of(recipe, run))
    if len({stage.run for stage in stages}) < len(stages):
        raise ConfigError(f"two stages of {name} have the same name: each needs a run's folder of its own")
    return stages


def check_origin(recipe: Recipe) -> None:
    """Raises TrainError where `model.init` is a run that does not exist, or that is not finished."""
    if recipe.model.init is None:
        return
    run = Path(recipe.model.init)
    if not run.exists() and run.is_relative_to(RUNS):  # otherwise it may be a Hub id or a bundled model
        raise TrainError(f"{recipe.name} starts from {run}, which does not exist: train the stage before it first")
    if not (run / "recipe.json").is_file():
        return
    try:
        steps = int(read_json(run / "recipe.json", TrainError)["train"]["steps"])
    except (KeyError, TypeError, ValueError):
        raise TrainError(f"{run / 'recipe.json'} is not a recipe that a run has written") from None
    done = _newest_step(run)
    if done < steps:
        raise TrainError(
            f"{recipe.name} starts from {run}, which has done {done} of {counted(steps, 'step')}: finish that "
            "run first, or name one of its checkpoints' folders"
        )


def _following(path: Path, before: Path) -> tuple[str, ...]:
    """Overrides by which a stage starts from the run `before`, and distils from it if its recipe names its parent."""
    own, quoted = load_recipe(path), json.dumps(str(before))
    teacher = own.qat and own.qat.distill_from
    distilled = (f"qat.distill_from={quoted}",) if teacher and teacher == own.model.init else ()
    return (f"model.init={quoted}", *distilled)


def _newest_step(run: Path) -> int:
    folders = step_folders(run)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def _overrides_of(stage: str, overrides: tuple[str, ...]) -> list[str]:
    """The overrides that apply to a stage, without its name in front."""
    chosen = []
    for override in overrides:
        head, _, rest = override.strip().partition(".")
        table = rest.partition("=")[0].partition(".")[0].strip()
        if head not in STAGES:
            chosen.append(override)
        elif head == stage:
            own_table = head in Recipe.model_fields and table not in Recipe.model_fields
            chosen.append(override if own_table else rest)
    return chosen
