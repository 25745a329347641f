"""Arguments and options that several verbs share, and how results are printed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a bundled model (nano), or a Hub id (ORG/NAME).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
GroupAxisOption = Annotated[
    str, typer.Option(help="INT4 groups of the experts: along 'in' (exports losslessly) or 'out' (as released).")
]
MaxNewTokens = Annotated[int, typer.Option(help="Stop after this many tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy; higher is more varied.")]
TopK = Annotated[int, typer.Option(help="Choose among the k likeliest tokens (0: all).")]
TopP = Annotated[float, typer.Option(help="Choose among the likeliest tokens that make up this share.")]
MinP = Annotated[float, typer.Option(help="Drop tokens less likely than this share of the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 makes tokens already seen less likely.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text (may be given several times).")]


def plain_console() -> Console:
    """For tables: names from files and folders are shown as they are, [brackets] and :colons: included."""
    return Console(markup=False, emoji=False, highlight=False)


def print_json(value: dict[str, Any]) -> None:
    """One object on one line, as scripts expect it."""
    print(json.dumps(value, ensure_ascii=False))
