"""`mobilemoe cache ...`: shows and removes what is kept between runs."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table

from mobilemoe import user_cache
from mobilemoe.cli.options import JsonOption, plain_console, print_json
from mobilemoe.errors import MobileMoEError, UsageError

app = typer.Typer(help="Show and clear what is kept between runs.", no_args_is_help=True)


@app.command("ls")
def ls(json: JsonOption = False) -> None:
    """List what is kept between runs, the most recently used first.

    These are engine files, models with random weights, and finished requests of evaluations. The first two take at most
    20 GB (or MOBILEMOE_CACHE_BYTES bytes); the least recently used are removed first.

    Example: mobilemoe cache ls
    """
    entries = _entries()
    size = sum(entry.bytes for entry in entries)
    if json:
        rows = [_values(entry) for entry in entries]
        folder = str(user_cache.cache_folder().parent)
        print_json({"folder": folder, "bytes": size, "limit": user_cache.limit(), "entries": rows})
        return
    table = Table("name", "MB", "last used", "of")
    table.columns[1].justify = "right"
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        table.add_row(entry.name, f"{entry.bytes / 1e6:,.1f}", used, entry.model)
    if entries:
        plain_console(150).print(table)
    print(f"{user_cache.cache_folder().parent}: {size / 1e6:,.1f} MB; the limit is {user_cache.limit() / 1e6:,.1f} MB")


@app.command("rm")
def rm(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Names as `cache ls` shows them.")
    ] = None,
    all: Annotated[
        bool, typer.Option("--all", help="Remove everything, finished requests of evaluations included.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Remove what is kept between runs. It is made again when needed; programs that use it now are not disturbed.

    Example: mobilemoe cache rm --all
    """
    if bool(names) == all:
        raise UsageError("give either NAMEs, as `mobilemoe cache ls` shows them, or --all")
    entries = {entry.name: entry for entry in _entries()}
    if unknown := [name for name in names or () if name not in entries]:
        raise UsageError(f"the cache has no {', '.join(unknown)}: `mobilemoe cache ls` shows what it has")
    gone = list(entries.values()) if all else [entries[name] for name in dict.fromkeys(names or ())]
    for entry in gone:
        entry.remove()
    user_cache.clear_temporary()
    size = sum(entry.bytes for entry in gone)
    if json:
        print_json({"removed": [entry.name for entry in gone], "bytes": size})
    else:
        print(f"{len(gone)} removed, {size / 1e6:,.1f} MB")


def _entries() -> list[user_cache.Entry]:
    try:
        return user_cache.entries()
    except OSError as fault:
        raise MobileMoEError(f"there is no cache that can be used: {fault}") from None


def _values(entry: user_cache.Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "path": str(entry.path),
        "bytes": entry.bytes,
        "used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.used)),
        "of": entry.model,
    }
