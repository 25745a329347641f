"""Draws what changes of routing cost and save."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mobilemoe.drawing import figure_kind
from mobilemoe.evaluate.compare.tradeoff import Point
from mobilemoe.routing import Routing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 30.0  # percent more bits per byte, beyond which a point is not shown
SKIPS = {
    "pair": "capacity: pairs of low weight",
    "token": "capacity: V-MoE's rule",
    "random": "capacity: any pairs",
}


def drawing() -> type[Figure]:
    """matplotlib's Figure. Raises MissingExtraError without it; call it before long work."""
    return figure_kind("drawing the curves", "eval")


def draw(
    name: str,
    points: Sequence[Point],
    speeds: Mapping[Routing, float],
    decoding: Sequence[tuple[float, float]],
    identity: str = "",
) -> bytes:
    """An SVG: misses over quality for each cache, a prompt's speed over quality, and, if any, the speeds of decoding
    under a limit of memory, by strength. `identity` stands in it as metadata."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "mobilemoe"}):  # the same points give the same file
        figure = drawing()(figsize=(14 if decoding else 10, 4.6), layout="constrained")
        panels = figure.subplots(1, 3 if decoding else 2)
        plain = next(point for point in points if point.routing == Routing())

        def cost(point: Point) -> float:
            return 100 * (point.bits_per_byte / plain.bits_per_byte - 1)

        cached = [point for point in points if point.routing.cached_experts]
        for places in dict.fromkeys(point.routing.cached_experts for point in cached):
            line = [point for point in cached if point.routing.cached_experts == places]
            labels = [f"{point.routing.cache_prior:g}" for point in line]
            values = [100 * (point.miss_rate or 0) for point in line]
            _line(panels[0], [*map(cost, line)], values, labels, f"{places} experts in memory a layer")
        _name(panels[0], f"{name}: experts preferred that are in memory", "chosen experts that are not in memory, %")
        panels[0].set_ylim(bottom=0)
        others = [point for point in points if not point.routing.cached_experts and point != plain]
        kinds = {"fewer experts for each token": [p for p in others if p.routing.experts_per_token]}
        for skip, label in SKIPS.items():
            kinds[label] = [p for p in others if p.routing.capacity and p.routing.skip == skip]
        for label, line in kinds.items():
            line = [point for point in line if cost(point) <= MOST]
            labels = [f"{point.routing.experts_per_token or point.routing.capacity:g}" for point in line]
            _line(panels[1], [*map(cost, line)], [speeds[point.routing] for point in line], labels, label)
        panels[1].plot([0], [1], "k*")
        _name(panels[1], f"{name}: less of a prompt computed", "times as fast as without")
        if decoding:
            strengths = [f"{strength:g}" for strength, _ in decoding]
            panels[2].plot(strengths, [speed for _, speed in decoding], marker="o")
            panels[2].set_title("decoding under a limit of memory", fontsize=10)
            panels[2].set_xlabel("lambda")
            panels[2].set_ylabel("tokens/s")
            panels[2].set_ylim(bottom=0)
            panels[2].grid(alpha=0.3)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Identifier": identity})
    return out.getvalue()


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], labels: Sequence[str], name: str) -> None:
    axes.plot(x, y, marker="o", label=name)
    for place, label in zip(zip(x, y, strict=True), labels, strict=True):
        axes.annotate(label, place, (5, 4), textcoords="offset points", fontsize=8)


def _name(axes: Axes, title: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("more bits per byte, %")
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
