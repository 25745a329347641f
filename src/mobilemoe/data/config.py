"""The `[data]` table of a recipe: what to train on."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mobilemoe.data.sources import HOLDOUT


class SourceConfig(BaseModel):
    """One source of a mixture: local `files` or a `hub` dataset, never both.

    `weight` is its share of tokens relative to the other sources. `files` are glob patterns below the data folder.
    Files ending in .npz are those of `mobilemoe data prepare`; a source has them alone or none of them.
    `hub` is what `datasets.load_dataset` takes first, if need be with a revision behind it ("org/name@v1"), `subset`
    its second argument and `hub_split` its split; `data_files` picks files of the repository (or, with a builder such
    as "json", local ones).
    Documents with a `messages` field are conversations; others need `text_field`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    weight: float = Field(gt=0, allow_inf_nan=False)
    files: str | list[str] | None = None
    hub: str | None = None
    subset: str | None = None
    hub_split: str = "train"
    data_files: str | list[str] | None = None
    text_field: str = "text"

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        if bool(self.files) == bool(self.hub):
            raise ValueError(f"source {self.name!r} needs either files or hub, and only one of them")
        if self.files and (self.subset or self.data_files):
            raise ValueError(f"source {self.name!r} reads files: subset and data_files belong to a hub source")
        return self


class DataConfig(BaseModel):
    """A mixture below the folder `path`, its shuffle `seed`, and the fraction of documents kept for validation.

    `train_on` "assistant" teaches of a conversation only what the assistant writes, and keeps conversations whole that
    fit a row; texts are taught whole either way. Prepared shards hold the train split: `holdout` does not cut them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    seed: int
    holdout: float = Field(default=HOLDOUT, ge=0, lt=1)
    piece_chars: int = Field(default=6000, ge=16)
    train_on: Literal["all", "assistant"] = "all"
    mixture: list[SourceConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique_names(self) -> DataConfig:
        names = [source.name for source in self.mixture]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named {name!r}: names tell their positions apart")
        return self
