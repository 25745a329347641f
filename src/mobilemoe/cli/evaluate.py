"""`mobilemoe eval`: bits per byte of a text, alone or beside a parent model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mobilemoe.cli.options import (
    ActivationsOption,
    BackendOption,
    JsonOption,
    KvOption,
    ModelArgument,
    QuantizeOption,
    ThreadsOption,
    load_model,
    plain_console,
    print_json,
)
from mobilemoe.evaluate.bits_per_byte import score_file
from mobilemoe.evaluate.compare import Comparison, compare_file

_COMPARED = ("bits_per_byte", "parent_bits_per_byte", "divergence", "agreement")


def evaluate(
    model: ModelArgument,
    text: Annotated[Path, typer.Option(help='JSONL of {"text"} or {"messages"}, grouped by "domain" or "source".')],
    window: Annotated[int | None, typer.Option(help="Tokens scored together (default: the model's context).")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="PARENT", help="Compare with this model: KL per token and agreement too.")
    ] = None,
    backend: BackendOption = "native",
    activations: ActivationsOption = None,
    kv: KvOption = None,
    threads: ThreadsOption = None,
    quantize: QuantizeOption = None,
    json: JsonOption = False,
) -> None:
    """Measure the bits that a model needs for each byte of a text.

    PARENT is any model of the same tokenizer, such as the BF16 run that the model was quantised from.

    Example: mobilemoe eval nano --text tests/data/heldout.jsonl --window 512
    """
    loaded = load_model(model, backend, activations, kv, threads, quantize)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("texts", total=None)

        def on_text(done: int) -> None:
            progress.update(task, completed=done)

        if against is not None:
            parent = load_model(against, "torch", None, None, threads, None)
            _print_comparison(compare_file(loaded, parent, text, window=window, on_text=on_text), json)
            return
        scores = score_file(loaded, text, window=window, on_text=on_text)
    whole = scores.pop("all")
    if json:
        by_source = {name: score.bits_per_byte for name, score in scores.items()}
        print_json(
            {"bits_per_byte": whole.bits_per_byte, "by_source": by_source, "bytes": whole.bytes, "tokens": whole.tokens}
        )
        return
    table = Table("source", "texts", "bytes", "tokens", "bits per byte")
    for name, score in [*sorted(scores.items()), ("all", whole)]:
        table.add_row(name, f"{score.texts:,}", f"{score.bytes:,}", f"{score.tokens:,}", f"{score.bits_per_byte:.4f}")
    plain_console().print(table)


def _print_comparison(found: dict[str, Comparison], json: bool) -> None:
    rows = {name: {field: getattr(each, field) for field in _COMPARED} for name, each in found.items()}
    whole = rows.pop("all")
    if json:
        print_json({**whole, "by_source": rows, "bytes": found["all"].bytes, "tokens": found["all"].tokens})
        return
    table = Table("source", "tokens", "bits per byte", "the parent's", "KL, nats a token", "same greedy token")
    for name, row in [*sorted(rows.items()), ("all", whole)]:
        numbers = [f"{row[field]:.4f}" for field in _COMPARED[:3]]
        table.add_row(name, f"{found[name].tokens:,}", *numbers, f"{row['agreement']:.2%}")
    plain_console().print(table)
