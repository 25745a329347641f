"""`mobilemoe pull`, `ls` and `rm`: the models on this machine."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mobilemoe import hub
from mobilemoe.cli.options import JsonOption, ModelArgument, plain_console, print_json
from mobilemoe.errors import MobileMoEError, UsageError

if TYPE_CHECKING:
    from mobilemoe.hub.cached import CachedModel


def pull(model: ModelArgument, json: JsonOption = False) -> None:
    """Download a model of the Hugging Face Hub, or the newest version of it. A broken download continues.

    Afterwards the model works without a network; other verbs do not ask the Hub for it again. A gated model needs its
    licence accepted on its page, and a token in HF_TOKEN or from `hf auth login`.

    Example: mobilemoe pull facebook/MobileMoE-S-QAT
    """
    folder, fetched = hub.pull(model)
    size = _bytes(folder)
    if json:
        print_json({"model": model, "folder": str(folder), "bytes": size, "fetched": fetched})
    else:
        print(f"{model}: {'downloaded' if fetched else 'nothing to download'}, {size / 1e6:,.1f} MB in {folder}")


def ls(json: JsonOption = False) -> None:
    """List the models on this machine: those of the package, and those from the Hub.

    Models from the Hub are kept in the folder that all its programs share, so this lists what others have downloaded
    too. The engine's files, which `mobilemoe cache ls` shows, are made from the weights at first use.

    Example: mobilemoe ls
    """
    rows = [_bundled(folder) for folder in hub.bundled_models()] + [_values(model) for model in _cached()]
    if json:
        print_json({"models": [row | {"used": _as_text(row["used"])} for row in rows]})
        return
    table = Table("model", "revision", "MB", "engine's MB", "last used")
    for column in table.columns[2:4]:
        column.justify = "right"
    for row in rows:
        revisions = [" ".join([commit[:8], *names]) for commit, names in row["revisions"].items()]
        name = row["name"] if row["complete"] else f"{row['name']} (incomplete)"
        used = "" if row["used"] is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(row["used"]))
        sizes = [f"{row[key] / 1e6:,.1f}" if row[key] else "" for key in ("bytes", "engine_bytes")]
        table.add_row(name, ", ".join(revisions) or "bundled", *sizes, used)
    plain_console(120).print(table)


def rm(
    model: ModelArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove a downloaded model in all its revisions, with what was made from it, after asking on a terminal.

    Example: mobilemoe rm facebook/MobileMoE-S-QAT --yes
    """
    if model in [folder.name for folder in hub.bundled_models()]:
        raise UsageError(f"{model} is part of the package and is not removed")
    found = next((each for each in _cached() if each.name == model), None)
    if found is None:
        raise MobileMoEError(f"{model} has not been downloaded: `mobilemoe ls` shows what has")
    size = (found.bytes + found.engine_bytes) / 1e6
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"this would remove {model} ({size:,.1f} MB): say --yes where nobody can be asked")
        if not typer.confirm(f"Remove {model} ({size:,.1f} MB, {found.folder})?", err=True):
            raise MobileMoEError("nothing was removed")
    freed = found.remove()
    print_json({"removed": model, "bytes": freed}) if json else print(f"{model}: removed, {freed / 1e6:,.1f} MB")


def _cached() -> list[CachedModel]:
    from mobilemoe.hub.cached import cached_models  # the Hub's library takes a while to import

    return cached_models()


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _bundled(folder: Path) -> dict[str, Any]:
    return {
        "name": folder.name, "bundled": True, "complete": True, "revisions": {}, "folder": str(folder),
        "bytes": _bytes(folder), "engine_bytes": 0, "used": None,
    }  # fmt: skip


def _values(model: CachedModel) -> dict[str, Any]:
    return {
        "name": model.name, "bundled": False, "complete": model.complete, "revisions": model.revisions,
        "folder": str(model.folder), "bytes": model.bytes, "engine_bytes": model.engine_bytes,
        "used": model.used,
    }  # fmt: skip


def _as_text(used: float | None) -> str | None:
    return None if used is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(used))
