"""Fixes the commits of what a run reads from the Hub: a resumed run reads the models and data that it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilemoe.errors import DataError
from mobilemoe.hub import data_commit, split_revision, with_commit
from mobilemoe.train.kept_recipe import kept_recipe
from mobilemoe.train.recipe import Recipe


def pin(recipe: Recipe, run: Path) -> Recipe:
    """`recipe` with a commit in each name of the Hub: that which the run in `run` began with, or the newest.

    Raises ModelNotFoundError or DataError where the Hub does not answer.
    """
    before = kept_recipe(run)
    kept: dict[str, Any] = {} if before is None else before.model_dump()
    tables: dict[str, Any] = recipe.model_dump()
    for table, entry in (("tokenizer", "path"), ("model", "init"), ("qat", "distill_from")):
        if (name := (tables[table] or {}).get(entry)) is not None:
            tables[table][entry] = _known(name, (kept.get(table) or {}).get(entry)) or with_commit(name)
    hubs = {source["name"]: source["hub"] for source in kept["data"]["mixture"]} if kept else {}
    for source in tables["data"]["mixture"]:
        if source["hub"] is not None:
            source["hub"] = _known(source["hub"], hubs.get(source["name"])) or _newest(source["hub"])
    return type(recipe).model_validate(tables)


def _known(name: str, before: str | None) -> str | None:
    """`before`, which stands in a run's recipe, if `name` means the same: it may have got its commit there."""
    return before if before is not None and name in (before, split_revision(before)[0]) else None


def _newest(hub: str) -> str:
    name, revision = split_revision(hub)
    try:
        commit = data_commit(name, revision)
    except Exception as fault:  # the Hub's client raises many kinds
        raise DataError(f"the dataset {hub} cannot be opened: {str(fault).strip().partition(chr(10))[0]}") from None
    return hub if commit in (None, revision) else f"{name}@{commit}"
