"""Recipes: one TOML file says which model is trained on what, how long and how; `--set` changes single entries."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mobilemoe.config import ModelConfig
from mobilemoe.data.config import DataConfig
from mobilemoe.errors import ConfigError, MobileMoEError, UsageError
from mobilemoe.files import read_toml
from mobilemoe.presets import preset


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Kind = TypeVar("_Kind", bound=BaseModel)
_Beta = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["bf16", "fp32"]


class ModelTable(_Table):
    """What is trained: a new model (a preset's name, and ModelConfig fields to change in it), or one that exists.

    `init` is a run's folder, a model's folder, a Hub id or a bundled name whose weights and architecture are taken.
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
        """The preset with its changes, for a model that does not start from `init`; ConfigError for what cannot be."""
        base = preset(self.preset or "")
        known = {field.name for field in dataclasses.fields(base)} - {"raw"}
        if unknown := sorted(set(self.changes) - known):
            raise ConfigError(f"model.changes.{unknown[0]} is not a field of a model config")
        return dataclasses.replace(base, **self.changes)


class TokenizerTable(_Table):
    """A folder with a tokenizer, or the name of a bundled model."""

    path: str = Field(min_length=1)


class TrainTable(_Table):
    """The loop's numbers (spec section 5). Batches are in rows of `sequence_length` tokens; rates are per step.

    `schedule` is how the learning rate falls after the warm-up: over all steps that are left as a cosine or a line; or,
    with "wsd", in a line over the last `decay_share` of all steps, and the steps of the selection bias with it.
    `precision` is that of matrix products ("auto": the faster one on this device, as `device.settle` finds it);
    `weights` that of the stored weights and moments (fp32: master weights).
    Every `validate_every` steps, and after the last one, the run is validated (0: never): it scores about
    `validate_tokens` tokens of held-out text, the same ones each time, and writes a short sample of text. What is held
    out is `data.holdout` of each source. Validation changes nothing that is trained.
    A GPU's numbers of `log_every` steps are read together, so that no step waits for the report of the one before; the
    metrics have every step all the same. `compile` None compiles on a GPU only.
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
        """The steps before the learning rate begins to fall."""
        if self.schedule == "wsd":
            return self.steps - max(1, round(self.decay_share * self.steps))
        return self.warmup_steps


class QatTable(_Table):
    """Quantisation-aware training (spec section 5): INT4 weights in groups of 32, INT8 activations.

    `learn_scales` trains the scales too (LSQ). `distill_from` names a model (as `model.init`) whose next-token
    distribution is learnt with weight `distill_weight`, and the text with the rest.
    """

    group_axis: Literal["in", "out"] = "in"
    activations: Literal["int8", "none"] = "int8"
    learn_scales: bool = False
    distill_from: str | None = Field(default=None, min_length=1)
    distill_weight: float = Field(default=0.5, gt=0, le=1)


class LoraTable(_Table):
    """Low-rank adapters in place of full training; everything else is frozen."""

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0)
    targets: tuple[Literal["attention", "shared", "experts"], ...] = Field(
        default=("attention", "shared", "experts"), min_length=1
    )


class DistributedTable(_Table):
    """How processes share the model: `replicate` groups (HSDP) of shards (FSDP2), `expert_parallel` within a group."""

    replicate: int = Field(default=1, gt=0)
    expert_parallel: int = Field(default=1, gt=0)


class Recipe(_Table):
    """A whole recipe. `name` is the run's folder below `runs/` unless another is given."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    model: ModelTable
    tokenizer: TokenizerTable
    data: DataConfig
    train: TrainTable
    qat: QatTable | None = None
    lora: LoraTable | None = None
    distributed: DistributedTable = DistributedTable()


def load_recipe(path: Path | str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe and applies overrides such as "train.steps=200" (the value is TOML, or else text).

    A relative data.path or tokenizer.path means the recipe's folder where the file says it, and the current folder
    where an override does. Raises ConfigError naming the entry, UsageError for an override that is no entry=value.
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


def validated(kind: type[_Kind], tables: dict[str, Any], name: str, what: str) -> _Kind:
    """The tables as a `kind`; ConfigError with `name`, the entry, its value and the rule that it breaks."""
    try:
        return kind.model_validate(tables)
    except ValidationError as fault:
        first = fault.errors()[0]
        entry, value = ".".join(map(str, first["loc"])), first["input"]
        given = "" if isinstance(value, dict) else f" is {value!r}"
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{name}: {entry or f'the {what}'}{given}: {reason}") from None


def resolve_paths(tables: dict[str, Any], root: Path) -> None:
    """Makes the two paths absolute; a tokenizer's that is no folder below `root` stays, being a bundled name."""
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
    table[last] = _value(text.strip(), _kinds_at(kind, path))


def _value(text: str, kinds: set[type]) -> Any:
    """What `text` means for an entry of these kinds: a TOML value, or the text itself where it is none, or where the
    entry is text: a folder may be called 2024-01-01 or true."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    return text if str in kinds and type(value) not in kinds else value


def _kinds_at(kind: type[BaseModel], path: Sequence[str]) -> set[type]:
    """The types that the entry at `path` of a `kind` may have; none where there is no such entry."""
    name, *below = path
    field = kind.model_fields.get(name)
    found = set(_types(field.annotation)) if field is not None else set()
    if not below:
        return found
    tables = [table for table in found if issubclass(table, BaseModel)]
    return set().union(*(_kinds_at(table, below) for table in tables))


def _types(annotation: Any) -> Iterator[type]:
    """The classes that an annotation names: those of a union, and without what is in brackets."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _types(part)
    elif origin is Annotated:
        yield from _types(get_args(annotation)[0])
    elif isinstance(origin or annotation, type):
        yield origin or annotation
