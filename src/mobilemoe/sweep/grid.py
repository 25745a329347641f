"""A sweep's grid: one TOML file that says which small models are trained on how many tokens, and in which order.

The file is a recipe, which is the reference run, with the tables `[scaling]`, `[heldout]` and `[blocks.NAME]` beside
it. Every run of the grid is that recipe with another architecture and another length: `sweep.runs` makes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mobilemoe.train.device import settle
from mobilemoe.train.entries import validated
from mobilemoe.train.recipe import Recipe, read_tables, resolve_paths


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Size(_Table):
    """The size of a model: its width, or the number of active parameters without the embedding to come nearest to.

    The depth follows the family's rule (spec section 1) unless `layers` is given.
    """

    hidden_size: int | None = Field(default=None, gt=0)
    parameters: float | None = Field(default=None, gt=0)
    layers: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_measure(self) -> Size:
        if (self.hidden_size is None) == (self.parameters is None):
            raise ValueError("a size has either hidden_size or parameters, and only one of them")
        return self


class Block(_Table):
    """The product of its axes. `rates` are factors on the learning rate of the rule.

    experts = 1 is the dense model, whatever granularity and shared say. A shared expert takes half of the slots, so
    shared = 1 with an odd granularity is left out.
    """

    sizes: list[Size] = Field(min_length=1)
    tokens: list[Annotated[int, Field(gt=0)]] = Field(min_length=1)
    experts: list[Annotated[int, Field(gt=0)]] = Field(default=[8], min_length=1)
    granularity: list[Annotated[int, Field(gt=0)]] = Field(default=[8], min_length=1)
    shared: list[Literal[0, 1]] = Field(default=[1], min_length=1)
    rates: list[Annotated[float, Field(gt=0)]] = Field(default=[1.0], min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)


class Scaling(_Table):
    """How a run of D tokens and width d differs from the reference run of D0 and d0.

    rows of a batch: B = B0 (D / D0)^batch_exponent.
    learning rate: eta = eta0 (d0 / d)^width_exponent (B / B0)^rate_exponent.
    Dense models may have an eta0 and a width_exponent of their own, `dense_learning_rate` and `dense_width_exponent`.

    `head_dim`: of every model, with as many key and value heads as heads; without it the family's rule, by which some
    widths get a narrower head, and some a single key and value head.
    `equal_gates`: the weights of a token's routed experts have mean 1, so that routed experts together write as much
    as the dense FFN of their width does, whatever g and s: routed_scaling_factor is the number of chosen experts, and
    2 for a single one, whose weight is not normalised and begins at sigmoid(0) = 1/2.
    `held_out`: so many runs of largest compute are marked, for laws to be checked on; `held_out_above`: those of more
    FLOPs than this, by 6 N D. `flops_per_second`: what all processes together train at, for the expected seconds alone.
    """

    batch_exponent: float = 0.5
    width_exponent: float = 0.75
    rate_exponent: float = 0.5
    dense_learning_rate: float | None = Field(default=None, gt=0)
    dense_width_exponent: float | None = None
    head_dim: int | None = Field(default=None, gt=0)
    equal_gates: bool = False
    held_out: int = Field(default=0, ge=0)
    held_out_above: float | None = Field(default=None, gt=0)
    flops_per_second: float | None = Field(default=None, gt=0)


class HeldOut(_Table):
    """The text that every run is scored on: of each source of `[data]` at most `tokens`, with the source's weight.

    `path` is a file of `mobilemoe data sample --split heldout`, whose lines say their domain. Without it, it is the
    held-out split of `[data]`, which prepared shards do not have.
    """

    path: str | None = None
    tokens: int = Field(default=250_000, gt=0)


class Grid(Recipe):
    """The whole file."""

    scaling: Scaling = Scaling()
    heldout: HeldOut = HeldOut()
    blocks: dict[str, Block] = Field(min_length=1)

    @model_validator(mode="after")
    def _trains_new_models(self) -> Grid:
        if self.model.preset is None:
            raise ValueError("a sweep trains new models: [model] needs a preset, whose vocabulary they take")
        if self.qat is not None or self.lora is not None:
            raise ValueError("a sweep trains whole models from the start: remove the tables qat and lora")
        return self

    @model_validator(mode="after")
    def _shares_trunks(self) -> Grid:
        if self.train.schedule == "wsd" and self.scaling.batch_exponent:
            raise ValueError(
                f"scaling.batch_exponent is {self.scaling.batch_exponent}, but runs of schedule 'wsd' share their "
                "beginning, whatever their tokens: it must be 0"
            )
        return self


def load_grid(path: Path | str, overrides: tuple[str, ...] = ()) -> Grid:
    """Reads a grid; `overrides` change single entries, as those of a recipe do ("blocks.knobs.tokens=[4096]").

    Relative paths mean the file's folder where the file says them, and the current folder where an override does.
    Raises ConfigError naming the entry, UsageError for an override that is no entry=value.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return settle(make_grid(read_tables(Grid, path, overrides, _resolve), str(path)), device)


def _resolve(tables: dict[str, Any], root: Path) -> None:
    resolve_paths(tables, root)
    resolve_paths({"data": tables.get("heldout")}, root)


def make_grid(tables: dict[str, Any], name: str) -> Grid:
    """The grid of these tables; ConfigError with `name`, the entry, its value and the rule it breaks."""
    return validated(Grid, tables, name, "grid")
