"""`mobilemoe prune`: a smaller model for one domain, with the experts that its texts need."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mobilemoe.checkpoint.draft import DRAFT
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.cli.options import JsonOption, ModelArgument, plain_console, print_json
from mobilemoe.counted import counted
from mobilemoe.errors import MissingExtraError
from mobilemoe.hub import find_model
from mobilemoe.progress import Progress

if TYPE_CHECKING:
    from mobilemoe.prune.result import Pruned

_FEW = 100  # choices for each expert, below which their counts say little


def prune(
    model: ModelArgument,
    *,
    text: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="A text, JSONL or parquet of the domain, or a folder of them (repeatable)."),
    ],
    experts: Annotated[int, typer.Option(metavar="N", min=1, help="Routed experts that stay in each layer.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to create; it must not exist.")],
    other: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Also measure on this text of other domains (repeatable)."),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Average the experts that go into those that stay, instead of dropping them."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Drop the experts that texts of a domain use least, and report what that costs in bits per byte.

    Nine tenths of the text choose the experts, one tenth measures. An expert's use is the norm of what it adds, summed
    over the tokens that choose it. INT4 weights that stay are moved as they are; --merge rounds the experts that it
    changes again. Any reader of the format reads the result. Its model card says how it was made, above that of the
    whole model.

    Example: mobilemoe prune nano --text docs/serving.md --experts 12 --out nano-12
    """
    try:
        from mobilemoe.prune.prune import prune as write
    except ModuleNotFoundError as missing:
        raise MissingExtraError(f"pruning a model ({missing.name})", "torch") from None
    with Progress():
        found = write(newest_model(find_model(model)), out, text, experts, others=other or (), merge=merge)
    each = found.use.chosen_LE.sum() / found.use.chosen_LE.size
    if each < _FEW:
        print(
            f"note: the text has only {counted(found.use.tokens, 'token')} to choose by, {each:,.0f} choices for an "
            "expert: another text of the domain could choose others",
            file=sys.stderr,
        )
    if (found.folder / DRAFT).exists():
        print(f"note: the draft head ({DRAFT}) of the whole model is kept: it may guess fewer tokens", file=sys.stderr)
    print_json(found.as_json()) if json else _print(found)


def _print(found: Pruned) -> None:
    before, after = found.before, found.after
    table = Table("", "before", "after", "")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("experts in a layer", str(found.use.chosen_LE.shape[1]), str(found.kept_LN.shape[1]), "")
    table.add_row("bytes of weights", f"{before.bytes:,}", f"{after.bytes:,}", f"{after.bytes / before.bytes - 1:+.1%}")
    for name, score in before.scores.items():
        was, now = score.bits_per_byte, after.scores[name].bits_per_byte
        table.add_row(f"bits per byte, {name}", f"{was:.4f}", f"{now:.4f}", f"{now / was - 1:+.1%}")
    console = plain_console()
    console.print(table)
    shares = found.share_L
    print(
        f"{found.use.tokens:,} tokens chose the experts; those that stay had {shares.mean():.1%} of the routing weight "
        f"({shares.min():.1%} in the layer where they had least)"
    )
    print(f"written: {found.folder}")
