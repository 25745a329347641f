"""`mobilemoe report`: evaluations side by side, as a page with pictures and as a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mobilemoe.cli.options import JsonOption, plain_console, print_json
from mobilemoe.errors import UsageError
from mobilemoe.files import check_replaceable, read_text, write_atomic

if TYPE_CHECKING:
    from mobilemoe.evaluate.report.pareto import Average
    from mobilemoe.evaluate.results.results import Results

PAGE = Path("report.html")


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS.json...", help="Files that `mobilemoe eval` wrote into results/.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE.html", help=f"The HTML page (default: {PAGE}); its pictures go into a folder beside it."
        ),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(metavar="CARD.md", help="Write a model card for one model; then --out is needed for a page."),
    ] = None,
    average: Annotated[
        bool, typer.Option("--average", help="Average also benchmarks with different metrics, as the paper does.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare results of `mobilemoe eval`: accuracy over FLOPs, bytes and time per token, with the Pareto front.

    Averages are over the benchmarks that all results have in common. If these are the paper's 14, the paper's models
    are drawn as reference marks.

    Example: mobilemoe report results/*.json --out report.html
    """
    from mobilemoe.evaluate.report.card import model_card
    from mobilemoe.evaluate.report.pareto import average as average_of
    from mobilemoe.evaluate.report.pareto import labels
    from mobilemoe.evaluate.report.report import write_report
    from mobilemoe.evaluate.results.results import read_results

    every = labels([(str(path), read_results(path)) for path in results])
    mean, left_out = average_of(every, mixed=average)
    written = []
    text = "" if card is None else model_card([*every.values()])
    if card is not None and card.exists() and read_text(card, UsageError) not in ("", text):
        raise UsageError(
            f"{card} holds another text, which may be somebody's own: choose another name or remove it first"
        )
    if out is not None or card is None:
        check_replaceable(out or PAGE, "page")
        written += write_report(every, out or PAGE, mixed=average)
    if card is not None:
        write_atomic(card, text)
        written.append(card)
    if json:
        print_json(_values(every, mean, left_out) | {"written": [str(path) for path in written]})
    else:
        _print(every, mean, left_out)
        for path in written:
            print(f"written: {path}")


def _values(every: Mapping[str, Results], mean: Average | None, left_out: Mapping[str, str]) -> dict[str, Any]:
    from mobilemoe.evaluate.report.pareto import fronts

    return {
        "models": {
            label: {
                "average": mean and mean.scores[label].value,
                "average_stderr": mean and mean.scores[label].stderr,
                "flops_per_token": results.model["flops_per_token"],
                "int4_bytes": results.model["int4_bytes"],
                "ms_per_token": results.speed.get("ms_per_token"),
            }
            for label, results in every.items()
        },
        "metric": mean and mean.metric,
        "averaged": mean.benchmarks if mean else (),
        "left_out": dict(left_out),
        "fronts": fronts(every, mean) if mean else {},
    }


def _print(every: Mapping[str, Results], mean: Average | None, left_out: Mapping[str, str]) -> None:
    from mobilemoe.evaluate.report.card import per_cent
    from mobilemoe.evaluate.report.pareto import COSTS, fronts

    found = fronts(every, mean) if mean else {}
    table = Table("* on the front", "average, %", *(cost.label for cost in COSTS))
    for column in table.columns[1:]:
        column.justify = "right"
    for label, results in every.items():
        cells = []
        for cost in COSTS:
            value = cost.of(results)
            star = " *" if label in found.get(cost.name, ()) else ""
            cells.append("-" if value is None else f"{value:.4g}{star}")
        table.add_row(label, per_cent(mean.scores[label]) if mean else "-", *cells)
    plain_console().print(table)
    if mean:
        print(f"average of {mean.metric} over {', '.join(mean.benchmarks)}")
    for why in dict.fromkeys(left_out.values()):
        print(f"left out: {', '.join(name for name in left_out if left_out[name] == why)}: {why}")
