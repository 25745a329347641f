"""Draws the speeds as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilemoe.drawing import figure_kind
from mobilemoe.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mobilemoe.profile.benchmark import Result
    from mobilemoe.profile.machine import Machine


def drawing() -> type[Figure]:
    """matplotlib's Figure. Raises MissingExtraError without it; call it before long work."""
    return figure_kind("drawing the speeds", "train")


def draw_speeds(results: Sequence[Result], machine: Machine, path: Path) -> None:
    """A PNG: prefill over prompt length and decode over context length, each point with its share of the limit."""
    figure = drawing()(figsize=(11, 5), layout="constrained")
    prefill_axes, decode_axes = figure.subplots(1, 2)
    for result in results:
        s = result.subject
        prefill = [(n, s.prefill_speed(n), s.mfu(n, machine)) for n in sorted(s.prefill)]
        decode = [(n, s.decode_speed(n), s.mbu(n, machine)) for n in sorted(s.decode)]
        _draw_line(prefill_axes, s.name, prefill)
        _draw_line(decode_axes, s.name, decode)
    engine = results[0].engine
    figure.suptitle(f"{engine.threads} threads, {engine.isa}")
    peak = machine.multiply_adds_per_s
    shares = f" (% of {peak / 1e9:,.0f} G multiply-adds/s)" if peak else ""
    _label(prefill_axes, f"prefill{shares}", "tokens of the prompt")
    bandwidth = machine.bytes_per_s
    shares = f" (% of {bandwidth / 1e9:.1f} GB/s)" if bandwidth else ""
    _label(decode_axes, f"decode{shares}", "tokens before")
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png", dpi=120)


def _draw_line(axes: Axes, name: str, points: Sequence[tuple[int, float, float | None]]) -> None:
    places = [str(n) for n, _, _ in points]
    axes.plot(places, [speed for _, speed, _ in points], marker="o", label=name)
    for place, (_, speed, share) in zip(places, points, strict=True):
        if share is not None:
            axes.annotate(f"{share:.0%}", (place, speed), (0, 7), textcoords="offset points", ha="center", fontsize=8)


def _label(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel("tokens per second")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])  # space for the shares above the points
    axes.grid(alpha=0.3)
    axes.legend()
