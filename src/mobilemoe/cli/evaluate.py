"""`mobilemoe eval`: benchmarks and bits per byte, of one model or of several beside each other."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mobilemoe.cli import options
from mobilemoe.errors import UsageError
from mobilemoe.evaluate.compare.bits_per_byte import Score, score_file
from mobilemoe.progress import Progress
from mobilemoe.routing import Routing

if TYPE_CHECKING:
    from mobilemoe.evaluate.compare.compression import Compression
    from mobilemoe.load import Model

ModelsArgument = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Models: folders, the bundled nano, Hub ids, or GGUF files.")
]


@options.grouped
def evaluate(
    models: ModelsArgument,
    *,
    suite: Annotated[
        str | None, typer.Option(help="Benchmarks: foundation, advanced, quick, or names such as hellaswag,piqa.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help='Measure bits per byte of a JSONL of {"text"} or {"messages"}, by "domain" or "source".'),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="PARENT", help="Compare with this model, example by example.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Read benchmarks from JSONL files in DIR instead of the Hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples per benchmark (default: all).")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the results, a JSON file for each model, suite and other settings (default: results).",
        ),
    ] = None,
    training: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Search this training text or recipe for the benchmarks' examples (repeatable)."
        ),
    ] = None,
    experts: Annotated[
        bool,
        typer.Option("--experts", help="Also show which experts each benchmark uses, or how many agree with PARENT's."),
    ] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run programs that the model writes, in a sandbox.")
    ] = False,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat", help="Ask in the chat template or not (default: as usual for each benchmark)."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep finished requests in DIR (default: the user's cache).")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Length in tokens of the windows of --text (default: the model's context).")
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", help="native (INT4, on the CPU), torch (fp32 in PyTorch) or gguf (llama.cpp).")
    ] = "native",
    engine: options.EngineOptions,
    routing: options.MeasuredRoutingOptions,
    json: options.JsonOption = False,
) -> None:
    """Evaluate models: benchmark scores with --suite, bits per byte with --text.

    Scores have standard errors. A data set that is not available is reported as missing, never scored as zero. The same
    command resumes a run that was stopped. With --text, PARENT must have the same tokenizer, such as the BF16 model
    that the others were quantised from, and is computed by PyTorch; with --suite it can be any model.

    Example: mobilemoe eval nano --text tests/data/heldout.jsonl --window 512
    """
    if suite is None and text is None:
        raise UsageError("say what to measure: --suite quick for benchmarks, --text FILE.jsonl for bits per byte")
    if suite is None:
        options.refuse_idle(
            "is for benchmarks: give a --suite too, or leave it out",
            data=data, limit=limit, out=out, training=training, allow_code=allow_code, cache=cache,
            chat=None if chat is None else True,
        )  # fmt: skip
    if text is None:
        options.refuse_idle("is for --text: give one too, or leave it out", window=window)
    if experts and suite is None and against is None:
        raise UsageError("--experts shows those of a --suite's prompts, or compares a --text's --against a parent")
    if backend == "gguf" and text is not None:
        raise UsageError("--text measures models of ours: with --backend gguf give a --suite")
    if backend == "gguf" and routing.routing() != Routing():
        raise UsageError("routing can be changed in the native engine only: leave --backend gguf out")
    if len(set(models)) < len(models) or (suite is not None and against in models):
        raise UsageError("a model is named twice")
    values: dict[str, Any] = {}

    def load(name: str) -> Model:
        return options.load_model(name, backend, engine, routing)

    with Progress() as progress:
        if suite is not None:
            from mobilemoe.cli.evaluate_suite import Settings, run_suite

            settings = Settings(
                suite=suite, data=data, limit=limit, allow_code=allow_code, chat=chat, cache=cache,
                out=out or Path("results"),
                training=tuple(training or ()), experts=experts, threads=engine.threads,
                changed={"activations": engine.activations, "kv": engine.kv, "quantize": engine.quantize}
                | vars(routing),
            )  # fmt: skip
            try:
                found = run_suite(models, against, backend, load, settings, progress)
            except KeyboardInterrupt:
                print("interrupted: finished requests are kept, the same command continues from there", file=sys.stderr)
                raise typer.Exit(130) from None
            values |= found.as_json()
        if text is not None and against is not None:
            from mobilemoe.evaluate.compare.compression import compression_table

            table = compression_table(
                _load_parent(against),
                {name: load(name) for name in models},
                text,
                experts=experts,
                window=window,
                on_text=progress.counter("texts"),
            )
            if suite is not None:
                table = table.with_benchmarks(found.differences)
            values |= table.as_json()
        elif text is not None:
            scores = {
                name: score_file(load(name), text, window=window, on_text=progress.counter("texts")) for name in models
            }
            values |= _score_values(scores)
    if json:
        options.print_json(values)
        return
    if suite is not None:
        found.print()
    if text is not None and against is not None:
        _print_compression(table, experts)
    elif text is not None:
        _print_scores(scores)


def _load_parent(name: str) -> Model:
    """The parent in PyTorch, which computes BF16 and INT4 weights alike."""
    return options.load_model(name, "torch")


def _score_values(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    """The JSON values of the only model, or of each model by name."""
    values = {
        name: {
            "bits_per_byte": found["all"].bits_per_byte,
            "by_source": {source: score.bits_per_byte for source, score in found.items() if source != "all"},
            "bytes": found["all"].bytes,
            "tokens": found["all"].tokens,
        }
        for name, found in scores.items()
    }
    return next(iter(values.values())) if len(values) == 1 else {"texts": values}


def _print_scores(scores: Mapping[str, Mapping[str, Score]]) -> None:
    for name, found in scores.items():
        table = Table("source", "texts", "bytes", "tokens", "bits per byte", title=name if len(scores) > 1 else None)
        for source in sorted(found, key=lambda source: (source == "all", source)):
            score = found[source]
            counts = [f"{count:,}" for count in (score.texts, score.bytes, score.tokens)]
            table.add_row(source, *counts, f"{score.bits_per_byte:.4f}")
        options.plain_console().print(table)


def _print_compression(found: Compression, with_experts: bool) -> None:
    table = Table(*found.heads)
    table.columns[0].no_wrap = True
    for row in found.rows():
        table.add_row(*row)
    options.plain_console(options.WIDE).print(table)
    if with_experts:
        for name, reason in found.without_experts.items():
            print(f"{name}: experts not compared: {reason}")
