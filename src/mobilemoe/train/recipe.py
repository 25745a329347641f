"""Recipes: a TOML file that says which model is trained, on what data, for how long and how."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mobilemoe.config import ModelConfig
from mobilemoe.data.config import DataConfig
from mobilemoe.errors import ConfigError, MobileMoEError, UsageError
from mobilemoe.files import read_toml
from mobilemoe.presets import preset
from mobilemoe.train.entries import kinds_at, validated


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Beta = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["bf16", "fp32"]


class ModelTable(_Table):
    """The model: a new one (the name of a preset, and ModelConfig fields to change in it), or an existing one.

    `init` names an existing one, which gives weights and architecture: the folder of a run or a model, a Hub id or a
    bundled name.
    """

    preset: str | None = None
    init: str | None = Field(default=None, min_length=1)
    changes: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_origin(self) -> ModelTable:
        if (self.preset is None) == (self.init is None):
            raise ValueError("a model has either a preset or an init, and only one of them")
        if self.init is not None and self.changes:
            raise ValueError("a model that starts from init keeps its architecture: remove changes")
        return self

    def new_config(self) -> ModelConfig:
        """The preset with its changes, for a model without `init`. ConfigError for what it cannot have."""
        base = preset(self.preset or "")
        known = {field.name for field in dataclasses.fields(base)} - {"raw"}
        if unknown := sorted(set(self.changes) - known):
            raise ConfigError(f"model.changes.{unknown[0]} is not a field of a model config")
        return dataclasses.replace(base, **self.changes)


class TokenizerTable(_Table):
    """A folder with a tokenizer, or the name of a bundled model."""

    path: str = Field(min_length=1)


class TrainTable(_Table):
    """How the loop trains (spec section 5). Batch sizes count rows of `sequence_length` tokens.

    `schedule` says how the learning rate falls after the warm-up: as a cosine or linearly over all remaining steps; or,
    with "wsd" (warm-up, stable, decay), linearly over the last `decay_share` of all steps, as does `balance_rate`.
    `precision` is that of matrix products ("auto": the faster one on this device, as `device.settle` measures it);
    `weights` is that of the stored weights and optimizer moments (fp32: master weights).
    Every `validate_every` steps and after the last one (0: never) the model is validated: it is scored on about
    `validate_tokens` tokens of held-out text (`data.holdout`), the same each time, and writes a short sample of text.
    Validation does not change what is trained.
    On a GPU the losses and statistics of `log_every` steps are read together, since each reading makes the GPU wait;
    the metrics still have a row for each step. `compile` None compiles on a GPU only.
    A step whose gradient norm exceeds `spike_factor` times the recent median is skipped; after `max_spikes` such steps
    in a row the run stops.
    """

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    sequence_length: int = Field(ge=2)
    learning_rate: float = Field(gt=0)
    final_learning_rate: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    decay_share: float = Field(default=0.2, gt=0, le=1)
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    z_loss: float = Field(default=1e-4, ge=0)
    balance_rate: float = Field(default=1e-3, ge=0)
    capacity_factor: float | None = Field(default=None, gt=0)
    precision: Literal[Precision, "auto"] = "auto"
    weights: Precision = "fp32"
    optimizer: Literal["adamw", "muon"] = "adamw"
    compile: bool | None = None
    activation_checkpointing: bool = False
    deterministic: bool = False
    spike_factor: float | None = Field(default=None, gt=1)
    max_spikes: int = Field(default=10, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int | None = Field(default=None, gt=0, le=1024)
    checkpoint_every: int = Field(default=500, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    log_every: int = Field(default=10, gt=0)
    validate_every: int = Field(default=0, ge=0)
    validate_tokens: int = Field(default=65_536, gt=0)

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainTable:
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ValueError(
                f"batch_size is {self.batch_size}, not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _warm_before_the_decay(self) -> TrainTable:
        if self.schedule == "wsd" and self.warmup_steps > self.decay_start:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but schedule 'wsd' decays from step {self.decay_start} of "
                f"{self.steps} on: train longer, or lower warmup_steps or decay_share"
            )
        return self

    @property
    def decay_start(self) -> int:
        """The number of steps before the learning rate starts to fall."""
        if self.schedule == "wsd":
            return self.steps - max(1, round(self.decay_share * self.steps))
        return self.warmup_steps


class QatTable(_Table):
    """Quantisation-aware training (spec section 5): INT4 weights in groups of 32, INT8 activations.

    `learn_scales` trains the scales too (learned step size quantisation, LSQ). `distill_from` names a teacher (as
    `model.init`): the divergence from its next-token distribution then has weight `distill_weight` in the loss, and
    the cross-entropy of the text has the rest.
    """

    group_axis: Literal["in", "out"] = "in"
    activations: Literal["int8", "none"] = "int8"
    learn_scales: bool = False
    distill_from: str | None = Field(default=None, min_length=1)
    distill_weight: float = Field(default=0.5, gt=0, le=1)


class LoraTable(_Table):
    """Low-rank adapters are trained instead of all weights, which are frozen."""

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0)
    targets: tuple[Literal["attention", "shared", "experts"], ...] = Field(
        default=("attention", "shared", "experts"), min_length=1
    )


class DraftTable(_Table):
    """A draft head is trained for the model of `model.init`, which stays as it is (`mobilemoe.model.draft`).

    `width` is that of its layer, `shortlist` the number of tokens that it can guess, the most frequent ones of the
    text. It learns to guess `steps` tokens in a row, and reads the outputs of some `layers` (from 0) beside the last.
    """

    width: int = Field(default=1024, gt=0, multiple_of=32, le=2**20)
    shortlist: int = Field(default=4096, gt=0, multiple_of=32, le=2**20)
    steps: int = Field(default=4, gt=0, le=16)
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()

    @model_validator(mode="after")
    def _ascending(self) -> DraftTable:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers is {list(self.layers)}: name each once, in ascending order")
        return self


class DistributedTable(_Table):
    """How processes share the model: `replicate` groups (HSDP), each of which holds it in shards (FSDP2), with the
    experts split over `expert_parallel` processes of a group.

    `replicate` None: on GPUs each process holds the whole model where a step with it fits a GPU by estimate, which
    sends least; else, and with parallel experts, there is one group.
    """

    replicate: int | None = Field(default=None, gt=0)
    expert_parallel: int = Field(default=1, gt=0)


class Recipe(_Table):
    """A whole recipe. `name` is the folder of the run below `runs/`, unless --out names another one."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    model: ModelTable
    tokenizer: TokenizerTable
    data: DataConfig
    train: TrainTable
    qat: QatTable | None = None
    lora: LoraTable | None = None
    draft: DraftTable | None = None
    distributed: DistributedTable = DistributedTable()

    @model_validator(mode="after")
    def _only_a_draft(self) -> Recipe:
        if self.draft is None:
            return self
        if self.model.init is None:
            raise ValueError("a draft head belongs to a trained model: name it as model.init")
        if self.qat is not None or self.lora is not None:
            raise ValueError("with [draft] nothing else is trained: remove the tables qat and lora")
        if self.train.validate_every:
            raise ValueError("a draft head has no loss on held-out text: set train.validate_every to 0")
        if self.train.sequence_length <= self.draft.steps + 1:
            raise ValueError(f"draft.steps is {self.draft.steps}: rows need more tokens than that and one")
        return self


def load_recipe(path: Path | str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe and applies overrides such as "train.steps=200" (the value is TOML, or else text).

    A relative data.path or tokenizer.path in the file starts at the recipe's folder, and in an override at the current
    folder. Raises ConfigError naming the entry, UsageError for an override that is no entry=value.
    """
    recipe = validated(Recipe, read_tables(Recipe, path, overrides), str(path), "recipe")
    if recipe.model.init is None:
        try:
            recipe.model.new_config()
        except MobileMoEError as fault:
            raise ConfigError(f"{path}: {fault}") from None
    return recipe


def read_tables(
    kind: type[BaseModel],
    path: Path | str,
    overrides: tuple[str, ...],
    resolve: Callable[[dict[str, Any], Path], None] | None = None,
) -> dict[str, Any]:
    """The tables of a TOML file of `kind`, with overrides, and its paths made absolute by `resolve`.

    Raises ConfigError for a file that cannot be read, UsageError for an override that is no entry=value.
    """
    path, resolve = Path(path), resolve or resolve_paths
    tables = read_toml(path, ConfigError)
    resolve(tables, path.parent)
    for override in overrides:
        _override(kind, tables, override)
    resolve(tables, Path.cwd())
    return tables


def resolve_paths(tables: dict[str, Any], root: Path) -> None:
    """Makes data.path and tokenizer.path absolute; a tokenizer that is no folder below `root` is a bundled name."""
    for table, must_exist in (("data", False), ("tokenizer", True)):
        entry = tables.get(table)
        if isinstance(entry, dict) and isinstance(entry.get("path"), str) and entry["path"]:
            absolute = Path(
                os.path.abspath(root / entry["path"])
            )  # links stay: where they lead, files may lack suffixes
            if absolute.is_dir() or not must_exist:
                entry["path"] = str(absolute)


def _override(kind: type[BaseModel], tables: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *parents, last = path = name.strip().split(".")
    if not equals or not all(path):
        raise UsageError(f"--set {override!r} is not ENTRY=VALUE, such as train.steps=200")
    table = tables
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {override!r}: {parent} is not a table of the recipe")
    table[last] = _value(text.strip(), kinds_at(kind, path))


def _value(text: str, kinds: set[type]) -> Any:
    """The value of `text` for an entry of these types: a TOML value, or the text itself if it is not TOML or if the
    entry is text, since a folder may be called 2024-01-01 or true."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    return text if str in kinds and type(value) not in kinds else value
