"""`mobilemoe sweep`: trains a grid of small models, for a scaling law to be fitted to."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mobilemoe.cli.options import JsonOption, SetOption, plain_console, print_json
from mobilemoe.counted import counted
from mobilemoe.errors import MissingExtraError
from mobilemoe.progress import Progress

if TYPE_CHECKING:
    from mobilemoe.sweep.grid import Grid
    from mobilemoe.sweep.runs import Run
    from mobilemoe.sweep.worker_pool import Summary


def sweep(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="A grid in TOML, such as recipes/sweep/tiny.toml.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep, with its runs.csv (default: runs/NAME).")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of runs at once (default: 4 per GPU; 1 without a GPU).")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this run or block; * matches any text. A failed run is tried again."),
    ] = None,
    rates: Annotated[
        bool,
        typer.Option("--rates", help="Show the best learning rates found in the sweep's folder, without training."),
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List every run and its cost, without training.")] = False,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Train every model of a grid, and write a row of runs.csv for each. The same command resumes.

    A run that fails becomes a line in failures.csv. Ctrl-C saves the current runs and exits with 0. A full disk or too
    little memory stops the whole sweep and saves what it can; the runs do not count as failed.

    Example: mobilemoe sweep recipes/sweep/tiny.toml --processes 2
    """
    try:
        from mobilemoe.sweep import worker_pool
        from mobilemoe.sweep.grid import load_grid
        from mobilemoe.sweep.units import own_costs
    except ModuleNotFoundError as missing:
        raise MissingExtraError(f"a sweep ({missing.name})", "train") from None
    loaded = load_grid(grid, tuple(set_ or ()))
    names = tuple(only or ())
    runs = worker_pool.choose(loaded, names)
    folder = out or Path("runs") / loaded.name
    if rates:
        _print_rates(loaded, folder / "runs.csv", json)
        return
    if list_:
        speed = worker_pool.flops_per_second(loaded, runs)
        costs = own_costs(runs)
        values = [
            run.columns | {"own_tokens": costs[run.id][0], "expected_seconds": costs[run.id][1] / speed} for run in runs
        ]
        if json:
            print_json(_totals(values) | {"runs": values})
        else:
            _print(values)
        return
    report = _Report(runs, quiet=json)
    with Progress(seconds=60):  # a run may take hours, and the number of those that have ended says little
        summary = worker_pool.sweep(loaded, folder, only=names, processes=processes, on_event=report.hear)
    table = folder / "runs.csv"
    if json:
        print_json(dataclasses.asdict(summary) | {"table": str(table)})
        return
    print(f"{len(summary.finished)} of {counted(len(runs), 'run')} finished: {table}")
    if summary.failed:
        print(f"{len(summary.failed)} failed, and --only NAME tries one again: {folder / 'failures.csv'}")
    if summary.left:
        print(f"{len(summary.left)} are left; the same command continues from there")
    elif summary.finished:
        print(f"next: mobilemoe fit {table}")


class _Report:
    """Prints a line on standard error for each run that ends. The time left is estimated from the speed so far."""

    def __init__(self, runs: list[Run], quiet: bool) -> None:
        from mobilemoe.sweep.units import own_costs

        self.flops = {name: flops for name, (_, flops) in own_costs(runs).items()}
        self.quiet, self.began, self.done = quiet, time.monotonic(), 0

    def hear(self, event: dict[str, Any], so_far: Summary) -> None:
        name = event["id"]
        if self.quiet or event["event"] == "started":
            return
        ended = len(so_far.finished) + len(so_far.failed)
        head = f"[{ended}/{len(self.flops)}] {name}"
        if event["event"] == "failed":
            print(f"{head}  failed: {event['reason']}", file=sys.stderr, flush=True)
            return
        self.done += self.flops[name]
        left = sum(self.flops[run] for run in so_far.left) / self.done * (time.monotonic() - self.began)
        print(
            f"{head}  loss {event['loss']:.4f}  {event['seconds']:,.0f} s  "
            f"{event['tokens_per_second']:,} tok/s  eta {left:,.0f} s",
            file=sys.stderr,
            flush=True,
        )


def _totals(values: list[dict[str, Any]]) -> dict[str, Any]:
    """What training all of it takes; tokens that several runs share count once."""
    tokens, seconds = (sum(run[name] for run in values) for name in ("own_tokens", "expected_seconds"))
    return {"tokens": tokens, "expected_seconds": seconds}


def _print(values: list[dict[str, Any]]) -> None:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "run": lambda run: run["id"] + ("  (held out)" if run["held_out"] else ""),
        "block": lambda run: run["block"],
        "N act M": lambda run: f"{run['n_active'] / 1e6:.2f}",
        "less emb.": lambda run: f"{run['n_active_no_embedding'] / 1e6:.2f}",
        "N total M": lambda run: f"{run['n_total'] / 1e6:.1f}",
        "tokens M": lambda run: f"{run['tokens'] / 1e6:.2f}",
        "E": lambda run: str(run["experts"]),
        "g": lambda run: str(run["granularity"]),
        "s": lambda run: str(run["shared"]),
        "layers": lambda run: str(run["layers"]),
        "d": lambda run: str(run["hidden_size"]),
        "rate": lambda run: f"{run['learning_rate']:.2e}",
        "batch": lambda run: f"{run['batch_tokens']:,}",
        "FLOPs": lambda run: f"{run['flops']:.2e}",
        "own M": lambda run: f"{run['own_tokens'] / 1e6:.2f}",  # less what another run of its trunk has trained
        "s expected": lambda run: f"{run['expected_seconds']:,.1f}",
    }
    table = Table(*columns, box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for column in table.columns:
        column.no_wrap = True
    for run in values:
        table.add_row(*(tell(run) for tell in columns.values()))
    plain_console(210).print(table)
    totals = _totals(values)
    print(
        f"{counted(len(values), 'run')}, {totals['tokens'] / 1e6:,.0f} M tokens to train on (own), "
        f"{totals['expected_seconds']:,.0f} s expected in all"
    )


def _print_rates(grid: Grid, table: Path, json: bool) -> None:
    """The best rate of each model, and the settings for the sweep that follows."""
    from mobilemoe.presets import preset
    from mobilemoe.sweep.rates import AGREES, best_rates, fit_rule
    from mobilemoe.sweep.table import read_rows

    bests = best_rates(read_rows(table))
    width = int(grid.model.changes.get("hidden_size", preset(grid.model.preset or "").hidden_size))
    exponent = grid.scaling.width_exponent
    mixtures, dense = ([best for best in bests if best.dense == kind] for kind in (False, True))
    arms = {"all": bests, "mixtures": mixtures, "dense": dense}
    rules = {arm: fit_rule(chosen, width, exponent) for arm, chosen in arms.items() if chosen}
    if json:
        as_json = {arm: dataclasses.asdict(rule) for arm, rule in rules.items()}
        print_json({"best": [dataclasses.asdict(best) for best in bests], "rules": as_json})
        return
    for best in bests:
        losses = "  ".join(f"{rate:.2e}: {loss:.4f}" for rate, loss in best.losses.items())
        end = "" if best.inside else "  (an end of the rates tried)"
        print(f"{best.arm:8} d {best.hidden_size:4}  {best.tokens / 1e6:6.1f} M  {losses}")
        print(f"{'':8} best {best.rate:.2e}, {best.gain:.4f} nats below the rule's{end}")
    for arm, rule in rules.items():
        print(f"{arm}: eta0 {rule.learning_rate:.3g}, exponent {rule.width_exponent}, within x {rule.spread:.2f}")
    joint = rules["all"]
    settings = [f"train.learning_rate={joint.learning_rate}", f"scaling.width_exponent={joint.width_exponent}"]
    if joint.spread > AGREES and len(rules) == 3:
        of_mixtures, of_dense = rules["mixtures"], rules["dense"]
        settings = [
            f"train.learning_rate={of_mixtures.learning_rate}",
            f"scaling.width_exponent={of_mixtures.width_exponent}",
            f"scaling.dense_learning_rate={of_dense.learning_rate}",
            f"scaling.dense_width_exponent={of_dense.width_exponent}",
        ]
    print("next: " + " ".join(f"--set {setting}" for setting in settings))
