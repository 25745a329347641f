"""The registered analysis of the fifth sweep: every run is forecast by a law that was fitted before any of them.

    python recipes/sweep/fifth/forecast.py              # writes forecasts.csv, from the second and fourth sweep alone
    python recipes/sweep/fifth/forecast.py RUNS.csv     # compares forecasts.csv with what was measured

The law `root` of ../third/forecast.py with N without the embedding and k = .58, fitted to the 93 dense and E8g8s0 runs
with 6 N D <= 3.75e15 FLOPs (and D >= 24.6 M tokens) of the second and fourth sweep; `paper-E` is its rival.
"""

from __future__ import annotations

import csv
import runpy
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.sweep.grid import load_grid
from mobilemoe.sweep.runs import grid_runs

Array = NDArray[np.float64]

HERE = Path(__file__).parent
FORECAST = runpy.run_path(str(HERE.parent / "third" / "forecast.py"), run_name="forecast")
K = 0.58
LEAST_TOKENS = 24_000_000
LOSSES = ("loss", "loss_books", "loss_textbooks", "loss_code", "loss_specs", "loss_docs")


def fitted_runs(path: Path) -> list[dict[str, str]]:
    """The smaller dense and E8g8s0 runs of a table from 24.6 M tokens on, without blocks that serve findings alone."""
    with path.open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["id"].split("-")[1] in ("dense", "e8g8s0")]
    rows = [row for row in rows if int(row["tokens"]) >= LEAST_TOKENS]
    blocks = FORECAST["BLOCKS"]
    registered = [row for row in rows if blocks & set(row["block"].split("+"))]
    return [row for row in registered or rows if row["held_out"] == "0"]


def table(rows: list[dict[str, Any]], loss: str, size: str) -> Any:
    def column(name: str) -> Array:
        return np.array([float(row.get(name, 0)) for row in rows])

    return FORECAST["Table"](
        [row["id"] for row in rows],
        column(size) / 5e6,
        column("tokens") / 5e7,
        (column("experts") > 1).astype(float),
        column(loss),
        column("held_out") > 0,
    )


def predict(known: list[dict[str, str]], unseen: list[dict[str, Any]], loss: str, k: float, size: str) -> Array:
    """The losses of `unseen` by `root` with this k, fitted to `known`; with k = 1 it is `paper-E`."""

    def law(theta: Array, runs: Any) -> Array:
        result: Array = FORECAST["root"](theta, runs, k)
        return result

    theta = FORECAST["fit"](law, 9, table(known, loss, size))
    if loss == "loss":
        print(f"k = {k}, {size}, {len(known)} runs fitted: constants", " ".join(f"{value:.4f}" for value in theta))
    return law(theta, table(unseen, loss, size))


def forecasts() -> dict[str, dict[str, float]]:
    """What forecasts.csv holds: for each run of the grid the loss, that of each domain, and those by `paper-E`."""
    known = [row for name in ("runs.csv", "fourth/runs.csv") for row in fitted_runs(HERE.parent / name)]
    unseen = [run.columns for run in grid_runs(load_grid(HERE / "grid.toml"))]
    columns = {loss: predict(known, unseen, loss, K, "n_active_no_embedding") for loss in LOSSES}
    columns["paper_e"] = predict(known, unseen, "loss", 1.0, "n_active")
    columns["paper_e_no_embedding"] = predict(known, unseen, "loss", 1.0, "n_active_no_embedding")
    return {
        run["id"]: {name: float(values[index]) for name, values in columns.items()} for index, run in enumerate(unseen)
    }


def write() -> None:
    found = forecasts()
    with (HERE / "forecasts.csv").open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["id", *next(iter(found.values()))])
        for name, values in found.items():
            writer.writerow([name, *(f"{value:.4f}" for value in values.values())])


def errors(measured: Path, forecast: str = "loss", loss: str = "loss", only: str = "") -> dict[str, float]:
    """A column of forecasts.csv less one of the table of runs, for those with `only` in their id."""
    with (HERE / "forecasts.csv").open(newline="") as handle:
        predicted = {row["id"]: float(row[forecast]) for row in csv.DictReader(handle)}
    with measured.open(newline="") as handle:
        return {
            row["id"]: predicted[row["id"]] - float(row[loss]) for row in csv.DictReader(handle) if only in row["id"]
        }


def compare(path: Path) -> None:
    def show(label: str, found: dict[str, float]) -> None:
        values = np.array([*found.values()])
        largest = np.abs(values).max()
        rmse = FORECAST["rmse"](values)
        print(f"{label:24} RMSE {rmse:.4f}, mean {values.mean():+.4f}, largest {largest:.4f}, {len(values)} runs")

    show("root (registered)", errors(path))
    for label, only in (("   dense models", "-dense-"), ("   mixtures", "-e8g8s0-"), ("   width 576", "d576")):
        show(label, errors(path, only=only))
    for rival in ("paper_e", "paper_e_no_embedding"):
        show(rival, errors(path, rival))
    for loss in LOSSES[1:]:
        show(f"   {loss}", errors(path, loss, loss))
    settings: dict[str, list[float]] = defaultdict(list)
    for name, error in errors(path).items():
        settings[name.rsplit("-seed", 1)[0]].append(error)
    show("means over seeds", {name: float(np.mean(values)) for name, values in settings.items()})
    for name in sorted(settings):
        print(f"   {name:26}", " ".join(f"{value:+.4f}" for value in settings[name]))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compare(Path(sys.argv[1]))
    else:
        write()
