"""`mobilemoe eval`: bits per byte of a text."""

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


def evaluate(
    model: ModelArgument,
    text: Annotated[Path, typer.Option(help='JSONL of {"text"} or {"messages"}, grouped by "domain" or "source".')],
    window: Annotated[int | None, typer.Option(help="Tokens scored together (default: the model's context).")] = None,
    backend: BackendOption = "native",
    activations: ActivationsOption = None,
    kv: KvOption = None,
    threads: ThreadsOption = None,
    quantize: QuantizeOption = None,
    json: JsonOption = False,
) -> None:
    """Measure the bits that a model needs for each byte of a text.

    Example: mobilemoe eval nano --text tests/data/heldout.jsonl --window 512
    """
    loaded = load_model(model, backend, activations, kv, threads, quantize)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("texts", total=None)
        scores = score_file(loaded, text, window=window, on_text=lambda done: progress.update(task, completed=done))
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
