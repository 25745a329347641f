"""`mobilemoe fit`: a scaling law from a table of finished trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mobilemoe.cli.options import JsonOption, plain_console, print_json, refuse_idle
from mobilemoe.counted import counted
from mobilemoe.errors import DataError, UsageError
from mobilemoe.files import check_replaceable
from mobilemoe.progress import Progress
from mobilemoe.scaling.law.domain import share_of_box
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.read_runs import COLUMNS, read_runs
from mobilemoe.scaling.law.runs import Runs

if TYPE_CHECKING:
    from mobilemoe.scaling.law.compare import Row
    from mobilemoe.scaling.law.fit import Fit

MOST_BOOTSTRAPS = 100_000


def fit(
    runs: Annotated[
        Path, typer.Argument(metavar="RUNS.csv", help="A table with a header and one finished training per line.")
    ],
    law: Annotated[
        str,
        typer.Option(help="The law: joint, paper-E, root, paper-g, paper-s, joint-moe, fine-grained or chinchilla."),
    ] = "joint",
    columns: Annotated[
        str | None,
        typer.Option(metavar="OURS=THEIRS,...", help="Names of columns in the table, such as loss=val_loss."),
    ] = None,
    bootstraps: Annotated[
        int, typer.Option(help="Number of bootstrap resamples for the intervals (0: no intervals).")
    ] = 4000,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only runs with this id or block of a sweep; * matches any text."),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            help="Share of the runs (0 to 0.5), those with the most compute, to predict from the others (default: the "
            "runs that a column held_out marks; without such a column 0.2)."
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare with other laws and simple rivals, by BIC.")
    ] = False,
    without_outliers: Annotated[
        bool,
        typer.Option(
            "--without-outliers", help="Fit again without the runs far from the law, and take that fit; both are shown."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the starting points and the resamples.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="LAW.json", help="Write the law as JSON, for `plan --law`.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FIT.html", help="Write an HTML page, and its pictures as PNGs in a folder beside it."),
    ] = None,
    vocabulary: Annotated[
        int | None,
        typer.Option(help="Vocabulary size of the models in the report's memory curves (default: 128256)."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Size of those models' KV cache in tokens (default: 4096).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Fit a scaling law to a table of trainings: constants with 90% intervals, and the error of a forecast.

    Columns: loss (nats per token), n_active (parameters), tokens or flops, and, if they vary, experts (E), granularity,
    shared, n_total, repeated, held_out, id. A column n_active or tokens without any value of 1e5 or more is read as
    billions.

    Example: mobilemoe fit recipes/sweep/runs.csv --law joint --bootstraps 400 --out law.json
    """
    from mobilemoe.scaling.law import compare as comparison
    from mobilemoe.scaling.law.fit import fit as fit_law
    from mobilemoe.scaling.report import pictures

    if not 0 <= bootstraps <= MOST_BOOTSTRAPS:
        raise UsageError(f"--bootstraps is {bootstraps}, but must be from 0 to {MOST_BOOTSTRAPS}")
    if seed < 0:
        raise UsageError(f"--seed is {seed}, but must be at least 0")
    if holdout is not None and not 0 <= holdout <= 0.5:
        raise UsageError(f"--holdout is {holdout:g}, but must be a share from 0 to 0.5")
    if report is None:
        refuse_idle("is for --report", vocabulary=vocabulary, context=context)
    else:
        pictures.drawing()
        check_replaceable(report, "page")
    if out is not None:
        check_replaceable(out, "law", _is_law)
    table = read_runs(runs, _mapping(columns), only or ())
    with Progress() as progress:
        try:
            found = fit_law(
                table,
                law,
                bootstraps=bootstraps,
                seed=seed,
                holdout=holdout,
                without_outliers=without_outliers,
                progress=lambda done, total: progress.tell(done, total, "resamples"),
            )
        except DataError as fault:
            raise DataError("; ".join([f"{runs}: {fault}", *table.notes])) from None
    rows = comparison.compare(table, holdout, seed) if compare else []
    errors = {row.name: row.holdout_rmse for row in rows if row.holdout_rmse is not None}
    if found.holdout is not None and not compare:
        errors = comparison.forecasts(table, holdout, seed)
    if said := comparison.better_forecast(found, errors):
        found = replace(found, notes=(*found.notes, said))
    if out is not None:
        found.law.save(out)
    if report is not None:
        from mobilemoe.scaling.report.report import write_report

        sizes = {"vocab_size": vocabulary, "context": context}
        given = {name: size for name, size in sizes.items() if size is not None}
        write_report(found, report, comparison=rows, pngs=True, **given)
    if json:
        print_json(_values(found, table, rows))
    else:
        _print(found, table, rows)
        for written in filter(None, (out, report)):
            print(f"written: {written}")


def _is_law(path: Path) -> bool:
    try:
        Law.load(path)
    except DataError:
        return False
    return True


def _mapping(text: str | None) -> dict[str, str]:
    """Parses "loss=a,tokens=b" into a mapping."""
    mapping: dict[str, str] = {}
    for part in text.split(",") if text else ():
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not equals or not ours or not theirs:
            raise UsageError(f"--columns has {part!r}, but a part is OURS=THEIRS, with OURS of {', '.join(COLUMNS)}")
        if ours in mapping:
            raise UsageError(f"--columns names {ours} twice")
        mapping[ours] = theirs
    return mapping


def _values(found: Fit, table: Runs, rows: Sequence[Row]) -> dict[str, Any]:
    law, held = found.law, found.holdout
    values: dict[str, Any] = {
        "law": law.form,
        "formula": law.formula,
        "units": "loss in nats a token, N (n_active) and D (tokens) in 1e9",
        "parameters": law.parameters,
        "intervals": {name: law.parameter_interval(name) for name in law.parameters} if law.samples is not None else {},
        "held": [name for name in law.parameters if name not in found.free],
        "plain_counts": law.plain_counts(),
        "domain": law.domain,
        "hull": law.hull,
        "weak_prior": law.weak_prior,
        "counts_embedding": law.counts_embedding,
        "runs": len(found.runs),
        "rmse": found.rmse,
        "mae": found.mae,
        "bic": found.bic,
        "converged": found.converged,
        "resamples": 0 if law.samples is None else len(law.samples),
        "failed_resamples": found.failed_resamples,
        "holdout": None
        if held is None
        else {
            "registered": held.registered,
            "ids": held.ids,
            "split": held.split,
            "mae": held.mae,
            "rmse": held.rmse,
        },
        "repeated": None,
        "without_far": None,
        "left_out": law.left_out,
        "with_outliers": None,
        "notes": [*table.notes, *found.notes],
    }
    if near := found.near:
        values["without_far"] = _brief(near)
    if whole := found.whole:
        values["with_outliers"] = _brief(whole)
    if apart := found.apart:
        values["repeated"] = _brief(apart)
    if rows:
        values["compared"] = [row.as_json() | {"holdout_rmse": _finite(row.holdout_rmse)} for row in rows]
    return values


def _brief(found: Fit) -> dict[str, Any]:
    return {"runs": len(found.runs), "rmse": found.rmse, "parameters": found.law.parameters}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _print(found: Fit, table: Runs, rows: Sequence[Row]) -> None:
    law = found.law
    embedding = {True: "counts the embedding", False: "is without the embedding", None: "as the table counts it"}
    print(f"{law.form}, {law.source}")
    print(f"  {law.formula}")
    print(f"  nats a token; N (n_active) and D (tokens) in 1e9; n_active {embedding[law.counts_embedding]}")
    _print_parameters(found)
    ranges = (f"{name} {low:g} to {high:g}" for name, (low, high) in law.domain.items())
    hull = f"; within it the hull of N and D, {share_of_box(law.hull):.0%} of the box" if law.hull else ""
    print(f"domain    {', '.join(ranges)}{hull}; the law says nothing beyond")
    print(
        f"error     RMSE {found.rmse:.4f}, MAE {found.mae:.4f} nats over {counted(len(found.runs), 'run')}; "
        f"BIC {found.bic:.1f}"
    )
    if law.weak_prior:
        print(f"priors    {law.weak_prior}")
    if held := found.holdout:
        print(f"forecast  RMSE {held.rmse:.4f}, MAE {held.mae:.4f} nats over {held.split}")
    if near := found.near:
        far = len(found.runs) - len(near.runs)
        print(f"\nwithout {counted(far, 'run')} far from the law: RMSE {near.rmse:.4f} nats over {len(near.runs)}")
        _print_parameters(near)
    if whole := found.whole:
        print(
            f"\nleft out above: {', '.join(law.left_out)}; with {'it' if len(law.left_out) == 1 else 'them'}: RMSE "
            f"{whole.rmse:.4f} nats over {counted(len(whole.runs), 'run')}"
        )
        _print_parameters(whole)
    if apart := found.apart:
        print(f"\nruns that repeat data, fitted apart: RMSE {apart.rmse:.4f} nats over {len(apart.runs)}")
        _print_parameters(apart)
    if rows:
        _print_rows(rows)
    for note in (*table.notes, *found.notes):
        print(f"note: {note}")


def _print_parameters(found: Fit) -> None:
    law = found.law
    table = Table("", "value", *(("90% interval",) if law.samples is not None else ()))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, value in law.parameters.items():
        interval = law.parameter_interval(name)
        if name not in found.free:
            cells = [f"{value:.4g}", "held"]
        else:
            cells = [f"{value:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""]
        table.add_row(name, *cells[: len(table.columns) - 1])
    plain_console().print(table)
    if law.form == "chinchilla":
        plain = law.plain_counts()
        terms = f"{plain['A']:.4g} N^{plain['alpha']:.4f} + {plain['B']:.4g} D^{plain['beta']:.4f} + {plain['c']:.4f}"
        print(f"N and D in plain counts: {terms}")


def _print_rows(rows: Sequence[Row]) -> None:
    table = Table("* plain rival", "parameters", "RMSE", "forecast RMSE", "BIC", "BIC - best")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        forecast = _finite(row.holdout_rmse)
        table.add_row(
            f"{row.name} *" if row.rival else row.name,
            str(row.parameters),
            f"{row.rmse:.4f}",
            "" if forecast is None else f"{forecast:.4f}",
            f"{row.bic:.1f}",
            f"{row.bic - rows[0].bic:.1f}",
        )
    plain_console().print(table)
