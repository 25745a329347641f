"""Arguments and options that several verbs share, and how results are printed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import mobilemoe
from mobilemoe.cores import allowed_cores
from mobilemoe.errors import MissingExtraError

if TYPE_CHECKING:
    from mobilemoe.load import Model
    from mobilemoe.train.recipe import Recipe

WIDE = 120  # characters of a table with many columns

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a bundled model (nano), or a Hub id (ORG/NAME).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
GroupAxisOption = Annotated[
    str, typer.Option(help="INT4 groups of the experts: along 'in' (exports losslessly) or 'out' (as released).")
]
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, such as recipes/nano-cpu.toml.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="ENTRY=VALUE", help="Change an entry of the recipe, such as data.path=DIR."),
]
BackendOption = Annotated[str, typer.Option("--backend", help="native (INT4 on the CPU) or torch (fp32; an extra).")]
ActivationsOption = Annotated[
    str | None, typer.Option("--activations", help="int8 (the native default) or fp32: exact, slow.")
]
KvOption = Annotated[str | None, typer.Option("--kv", help="Keys and values in int8, fp16 or fp32.")]


def _warn_of_threads(threads: int | None) -> int | None:
    if threads is not None and threads > (cores := allowed_cores()):
        print(
            f"mobilemoe: warning: --threads is {threads}, but this process may use {cores} "
            f"{'core' if cores == 1 else 'cores'}: no more threads than that will run",
            file=sys.stderr,
        )
    return threads


ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", callback=_warn_of_threads, help="By default one for each core that the process may use."),
]
QuantizeOption = Annotated[str | None, typer.Option("--quantize", help="int4: round BF16 weights to nearest and run.")]
MaxNewTokens = Annotated[int, typer.Option(help="Stop after this many tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy; higher is more varied.")]
TopK = Annotated[int, typer.Option(help="Choose among the k likeliest tokens (0: all).")]
TopP = Annotated[float, typer.Option(help="Choose among the likeliest tokens that make up this share.")]
MinP = Annotated[float, typer.Option(help="Drop tokens less likely than this share of the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 makes tokens already seen less likely.")]
PresencePenalty = Annotated[float, typer.Option(help="Above 0 makes tokens already written less likely, once each.")]
FrequencyPenalty = Annotated[float, typer.Option(help="As the presence penalty, for each time that they were written.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text (may be given several times).")]


def load_model(
    name: str, backend: str, activations: str | None, kv: str | None, threads: int | None, quantize: str | None
) -> Model:
    """The model as these options want it; `load` checks them, with a sentence each."""
    options: dict[str, Any] = {"backend": backend, "activations": activations, "kv": kv, "quantize": quantize}
    return mobilemoe.load(name, threads=threads, **options)


def plain_console(least_width: int = 0) -> Console:
    """For tables: names from files and folders are shown as they are, [brackets] and :colons: included.

    `least_width`: in characters, for rows that are to stay whole also where nobody says how wide a line is.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    console.width = max(console.width, least_width)
    return console


def read_recipe(path: Path, overrides: list[str] | None) -> Recipe:
    """The recipe with its `--set` changes; MissingExtraError where what reads recipes is not installed."""
    try:
        from mobilemoe.train.recipe import load_recipe
    except ModuleNotFoundError as missing:
        raise MissingExtraError(f"reading recipes ({missing.name})", "train") from None
    return load_recipe(path, tuple(overrides or ()))


def print_json(value: dict[str, Any]) -> None:
    """One object on one line, as scripts expect it: what JSON cannot say is null, and any encoding can carry it."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf8sig")
    print(json.dumps(_sayable(value), ensure_ascii=not utf8, allow_nan=False))


def _sayable(value: Any) -> Any:
    """Without NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _sayable(each) for name, each in value.items()}
    return [_sayable(each) for each in value] if isinstance(value, list | tuple) else value
