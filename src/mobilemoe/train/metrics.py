"""What a run reports: a JSON line for each step, progress on standard error, and pictures of loss and expert load.

L MoE layers, G domains, E experts.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mobilemoe.counted import counted
from mobilemoe.drawing import figure_kind
from mobilemoe.errors import MachineError, TrainError
from mobilemoe.files import atomic_file, read_bytes, write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_BYTES = 2**31  # of metrics: millions of steps
METRICS_FILE = "metrics.jsonl"
DRAWN = ("tokens", "loss", "load_variation")  # numbers of a row that `draw_loss` needs
PLAIN_EVERY = 10  # steps between lines where there is no terminal


class MetricsLog:
    """metrics.jsonl of a run. Opening it at `step` drops the rows after that step, which a resumed run writes again.

    Raises MachineError where a row cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        rows = [row for row in read_metrics(path) if row["step"] <= step]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._handle = path.open("ab", buffering=0)  # a row that does not fit must not be tried again at the end

    def write(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row) + "\n").encode()
        try:
            if self._handle.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as fault:
            raise MachineError(
                f"{self.path} cannot be written after step {row['step'] - 1}: {fault.strerror}; the checkpoints stand: "
                "make room and start the same command again"
            ) from None

    def close(self) -> None:
        self._handle.close()


def read_metrics(path: Path, *numbers: str) -> list[dict[str, Any]]:
    """The rows that have a step and these `numbers`; lines that are cut short or hold something else are left out."""
    if not path.exists():
        return []
    rows = []
    for line in read_bytes(path, TrainError, limit=MAX_BYTES).splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        is_row = isinstance(row, dict) and type(row.get("step")) is int
        if is_row and all(type(row.get(name)) in (int, float) for name in numbers):
            rows.append(row)
    return rows


def last_validation(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the last row that has a validation says of it; None where no row has one."""
    return next((row["validation"] for row in reversed(rows) if _is_validated(row)), None)


def _is_validated(row: dict[str, Any]) -> bool:
    found = row.get("validation")
    return isinstance(found, dict) and all(type(found.get(name)) in (int, float) for name in ("loss", "bits_per_byte"))


class ProgressReport:
    """A progress bar on a terminal, and elsewhere a line every few steps; on standard error."""

    def __init__(self, steps: int, done: int) -> None:
        self._steps, self._console = steps, Console(stderr=True)
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("training", total=steps, completed=done)
            self._bar.start()

    def update(self, row: dict[str, Any], eta_seconds: float) -> None:
        text = (
            f"loss {row['loss']:.4f}  {row['tokens_per_second']:,.0f} tok/s  "
            f"load cv {row['load_variation']:.2f}  dead {row['dead_experts']}"
        )
        if "agreed" in row:  # of a draft head, whose model does not learn
            text = text.partition("  load")[0] + "  agreed " + " ".join(f"{share:.3f}" for share in row["agreed"])
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], description=text)
        elif row["step"] % PLAIN_EVERY == 0 or row["step"] == self._steps:
            self._console.print(f"step {row['step']}/{self._steps}  {text}  eta {eta_seconds:,.0f} s", highlight=False)

    def say(self, sentence: str) -> None:
        """A line of its own."""
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def drawing() -> type[Figure]:
    """matplotlib's class of figures. Raises MissingExtraError without matplotlib; call it before long work."""
    return figure_kind("drawing the pictures of training", "train")


def draw_loss(rows: list[dict[str, Any]], path: Path) -> None:
    """Training loss, held-out loss and expert load over tokens, as a PNG; `rows` have the numbers `DRAWN`."""
    figure = drawing()(figsize=(8, 6), layout="constrained")
    loss_axes, load_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    tokens = [row["tokens"] / 1e6 for row in rows]
    losses = [row["loss"] for row in rows]
    width = max(1, len(rows) // 50)
    smooth = [sum(losses[max(0, i - width + 1) : i + 1]) / (i + 1 - max(0, i - width + 1)) for i in range(len(losses))]
    loss_axes.plot(tokens, losses, color="0.8", linewidth=0.8, label="training, each step")
    loss_axes.plot(tokens, smooth, color="tab:blue", label=f"training, mean of {counted(width, 'step')}")
    if validated := [row for row in rows if _is_validated(row)]:
        held_out = [row["validation"]["loss"] for row in validated]
        label = f"held-out text (last: {validated[-1]['validation']['bits_per_byte']:.3f} bits per byte)"
        places = [row["tokens"] / 1e6 for row in validated]
        loss_axes.plot(places, held_out, color="tab:red", marker="o", markersize=3, label=label)
    loss_axes.set_ylabel("loss (nats per token)")
    loss_axes.legend()
    load_axes.plot(tokens, [row["load_variation"] for row in rows], color="tab:orange", linewidth=0.8)
    load_axes.set_ylabel("expert load\nstd / mean")
    load_axes.set_xlabel("tokens (millions)")
    for axes in (loss_axes, load_axes):
        axes.grid(alpha=0.3)
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png", dpi=120)


def draw_routing(report: dict[str, Any], path: Path) -> None:
    """What `RouterHealth.report` returned, as a PNG of heat maps with a row for each layer, a column for each expert.

    The first map is each expert's load relative to the mean of its layer. If the text has several domains, one map for
    each follows: the expert's share of the domain's tokens, relative to its share of all tokens. White is 1, which
    means no preference; grey means that the expert got no tokens at all.
    """
    new_figure = drawing()
    from matplotlib.ticker import MaxNLocator

    load_LE = np.array(report["load"], dtype=float)
    of_domain_GLE = {name: np.array(load, dtype=float) for name, load in report["load_by_domain"].items()}
    maps = {"all: load / mean": load_LE / load_LE.mean(axis=1, keepdims=True)}
    if len(of_domain_GLE) > 1:
        with np.errstate(invalid="ignore"):  # nothing over nothing is grey
            share_LE = load_LE / load_LE.sum(axis=1, keepdims=True)
            for name, of_LE in of_domain_GLE.items():
                maps[name] = of_LE / of_LE.sum(axis=1, keepdims=True) / share_LE
    columns = min(len(maps), min((3, 4), key=lambda columns: -len(maps) % columns))  # few empty places
    rows = math.ceil(len(maps) / columns)
    height, width = 0.8 + 0.12 * len(load_LE), 1.8 + 0.06 * load_LE.shape[1]
    figure = new_figure(figsize=(1 + width * columns, 0.3 + rows * height), layout="constrained")
    grid: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, ratio_LE) in zip(grid, maps.items(), strict=False):
        image = axes.imshow(ratio_LE, cmap="RdBu_r", vmin=0, vmax=2, aspect="auto", interpolation="nearest")
        axes.set_facecolor("0.7")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("expert", fontsize=8)
        axes.set_ylabel("layer", fontsize=8)
        axes.tick_params(labelsize=7)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    for axes in grid[len(maps) :]:
        axes.set_axis_off()
    bar = figure.colorbar(image, ax=grid, extend="max")
    bar.set_label("relative use (1: no preference)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png", dpi=120)
