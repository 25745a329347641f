"""`mobilemoe convert`: between BF16 and INT4, between the two group axes, and to the native engine's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer
from rich.table import Table

from mobilemoe import checkpoint
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.cli.options import JsonOption, plain_console, print_json, refuse_idle
from mobilemoe.config import GroupAxis
from mobilemoe.errors import UsageError
from mobilemoe.hub import find_model
from mobilemoe.imports.gguf import convert_gguf
from mobilemoe.imports.transformers import convert_transformers
from mobilemoe.imports.transformers_config import model_type
from mobilemoe.progress import Progress
from mobilemoe.quant.export import learnt_scales, quantize_learnt

FORMATS = ("bf16", "int4", "engine")


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="The model to read: a folder, nano, a Hub id, or a GGUF file.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to create; it must not exist.")],
    format: Annotated[str, typer.Option(help="What to write: bf16, int4, or engine (INT4, laid out for the engine).")],
    group_axis: Annotated[
        str | None,
        typer.Option(
            help="Direction of the experts' groups in int4: 'in' (as other runtimes need it, the default) or 'out' "
            "(as released)."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a model in another format, and report the error that this adds.

    The format "engine" keeps every INT4 weight exactly, in the order in which the native engine reads them.

    SRC may also be what `mobilemoe export` wrote (4-bit weights become INT4 bit for bit), or a checkpoint of
    transformers' Glm4Moe, dots1, OLMoE or Qwen3-MoE in BF16, FP16 or FP32.

    Example: mobilemoe convert nano nano-bf16 --format bf16; mobilemoe convert nano.gguf nano-again --format int4
    """
    if format not in FORMATS:
        raise UsageError(f"--format is {format!r}, but must be one of {', '.join(FORMATS)}")
    if format != "int4":
        refuse_idle("is for --format int4: leave it out", group_axis=group_axis)
    group_axis = group_axis or "in"
    if Path(source).is_file():
        read_back(Path(source), target, format, group_axis, json)
        return
    folder = newest_model(find_model(source))
    if model_type(folder) is None:
        write(folder, target, format, group_axis, json)
    else:
        read_back(folder, target, format, group_axis, json)


def read_back(source: Path, target: Path, format: str, group_axis: str, json: bool) -> None:
    """Converts a model of another runtime and prints the report."""
    if format == "engine":
        raise UsageError(f"--format engine is not written from {source} in one step: convert it to int4 first")
    read = convert_gguf if source.is_file() else convert_transformers
    with Progress():
        report = read(source, target, format=cast(checkpoint.Format, format), group_axis=cast(GroupAxis, group_axis))
    print_report(target, report, json)


def write(source: Path, target: Path, format: str, group_axis: str, json: bool) -> None:
    """Converts and prints the report; `quantize` ends with it too."""
    if format == "engine":
        from mobilemoe.engine import write_engine_folder

        write_engine_folder(source, target)
        print_report(target, checkpoint.Report({}, lossless=True), json)
        return
    axis = cast(GroupAxis, group_axis)  # `convert` checks the axis and the format, and says what is wrong
    with Progress():
        if format == "int4" and (scales := learnt_scales(source)):
            report = quantize_learnt(source, target, scales, axis)
        else:
            report = checkpoint.convert(source, target, format=cast(checkpoint.Format, format), group_axis=axis)
    print_report(target, report, json)


def print_report(target: Path, report: checkpoint.Report, json: bool) -> None:
    """What a conversion cost, by kind of weight."""
    if json:
        errors = {kind: {"max_abs": e.max_abs, "relative_rms": e.relative_rms} for kind, e in report.kinds.items()}
        print_json(
            {"folder" if target.is_dir() else "file": str(target), "lossless": report.lossless, "errors": errors}
        )
        return
    if report.lossless:
        print(f"{target}: every weight is exactly what it was")
        return
    table = Table("weights", "largest error", "relative RMS error", title=str(target), title_justify="left")
    for kind, error in report.kinds.items():
        table.add_row(kind, f"{error.max_abs:.3g}", f"{error.relative_rms:.3%}")
    plain_console().print(table)
