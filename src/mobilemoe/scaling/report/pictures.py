"""The pictures of a law and of its fit, one panel each, so that a phone shows them one below the other.

In all pictures a line is solid inside the law's domain and dashed outside, dense models are black, and each number of
experts E has one colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mobilemoe.drawing import figure_kind, png
from mobilemoe.paper import SWEPT
from mobilemoe.presets import DENSE
from mobilemoe.scaling.law.fit import Fit, Holdout
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.optimum.optimum import Choice, Knobs, Optimum
from mobilemoe.scaling.report.scene import PLACES, STRETCH, Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

BUDGETS = 25  # along a curve over compute
LOSS_RANGE = 0.35  # nats shown above the lowest loss
NAMES = {"n_active": "active parameters", "tokens": "training tokens", "experts": "experts E"}
NAMES |= {"granularity": "granularity g", "shared": "shared expert s"}


def drawing() -> type[Figure]:
    """matplotlib's Figure. Raises MissingExtraError without it; call it before long work."""
    return figure_kind("drawing", "scaling")


def draw(paint: Callable[[Axes], None]) -> bytes:
    """The PNG of one panel, which `paint` fills."""
    figure = drawing()(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    paint(axes)
    axes.grid(alpha=0.3)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return png(figure, dpi=140)


# The fit


def measured(axes: Axes, fit: Fit) -> None:
    """Predicted against measured loss."""
    for label, colour, chosen in _by_experts(fit.runs.points.experts):
        axes.plot(fit.runs.loss[chosen], fit.predicted[chosen], "o", ms=4, alpha=0.7, color=colour, label=label)
    _diagonal(axes)


def predicted(axes: Axes, holdout: Holdout) -> None:
    """Predicted against measured loss of runs that were not fitted."""
    axes.plot(holdout.loss, holdout.predicted, "o", ms=5, color="tab:red", label="held-out runs")
    _diagonal(axes)


def _diagonal(axes: Axes) -> None:
    low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color="0.5", lw=0.8, zorder=0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("measured loss (nats per token)")
    axes.set_ylabel("predicted loss")


def residuals(axes: Axes, fit: Fit, column: str) -> None:
    """Predicted minus measured loss over one column of the runs; the grey band is the RMSE."""
    values = getattr(fit.runs.points, column)
    errors = fit.predicted - fit.runs.loss
    for label, colour, chosen in _by_experts(fit.runs.points.experts):
        axes.plot(values[chosen], errors[chosen], "o", ms=4, alpha=0.7, color=colour, label=label)
    axes.axhspan(-fit.rmse, fit.rmse, color="0.5", alpha=0.15, lw=0)
    axes.axhline(0, color="0.5", lw=0.8)
    if column in ("n_active", "tokens"):
        _billions(axes, NAMES[column])
    elif column == "shared":
        axes.set_xlabel(NAMES[column])
        axes.set_xticks([0, 1], ["none", "shared"])
    else:
        axes.set_xlabel(NAMES[column])
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("predicted - measured (nats)")


# The law


def domain(axes: Axes, law: Law, fit: Fit | None) -> None:
    """The hull of N and D that is the law's domain, and the runs of the fit."""
    corners = np.array(law.hull)
    axes.fill(*corners.T, color="0.5", alpha=0.2, label="domain")
    if fit is not None:
        for label, colour, chosen in _by_experts(fit.runs.points.experts):
            points = fit.runs.points.at(chosen)
            axes.plot(points.n_active, points.tokens, "o", ms=4, alpha=0.7, color=colour, label=label)
    axes.set_yscale("log")
    axes.set_ylabel(f"{NAMES['tokens']} (billions)")
    _sparse_ticks(axes.yaxis)
    _billions(axes, NAMES["n_active"])


def compute_optima(scene: Scene) -> tuple[Array, list[Optimum]]:
    """Training budgets from below to above the runs' range by a factor STRETCH, and the optimum at each."""
    flops = np.geomspace(scene.flops[0] / STRETCH, scene.flops[1] * STRETCH, BUDGETS)
    found = [scene.optimum(scene.law_for_bands, budget) for budget in flops]
    return flops, found


def optimal(axes: Axes, scene: Scene, flops: Array, found: Sequence[Optimum], field: str) -> None:
    """N* (field "n_active") or D* ("tokens") over training compute, for each E, with the band of the best."""
    for knobs in scene.lines:
        choices = _choices(found, knobs)
        values = np.array([getattr(choice, field).value for choice in choices])
        _line(axes, flops, values, np.array([not choice.warnings for choice in choices]), knobs)
    bands = np.array([getattr(each, field) for each in found])
    axes.fill_between(flops, bands[:, 1], bands[:, 2], color="0.5", alpha=0.2, lw=0, label="best E: interval")
    axes.set_yscale("log")
    _sparse_ticks(axes.yaxis)
    axes.set_ylabel(f"best {NAMES[field]} (billions)")
    _compute(axes)


def gained(axes: Axes, scene: Scene, flops: Array, found: Sequence[Optimum]) -> None:
    """The lowest loss of each E over training compute, minus the dense model's if there is one."""
    against = DENSE in scene.lines and len(scene.lines) > 1
    base = np.array([choice.loss.value for choice in _choices(found, DENSE)]) if against else np.zeros(len(flops))
    for knobs in scene.lines:
        choices = _choices(found, knobs)
        losses = np.array([choice.loss.value for choice in choices])
        _line(axes, flops, losses - base, np.array([not choice.warnings for choice in choices]), knobs)
        if not against:
            bands = np.array([choice.loss for choice in choices])
            named = None if "interval" in axes.get_legend_handles_labels()[1] else "interval"
            axes.fill_between(flops, bands[:, 1], bands[:, 2], color="0.5", alpha=0.2, lw=0, label=named)
    axes.set_ylabel("least loss, less the dense model's (nats)" if against else "least loss (nats per token)")
    _compute(axes)


def _choices(found: Sequence[Optimum], knobs: Knobs) -> list[Choice]:
    return [next(c for c in each.choices if (c.experts, c.granularity, c.shared) == knobs) for each in found]


def equal_loss(axes: Axes, scene: Scene, level: float) -> None:
    """Memory and training compute of all models that reach the loss `level`, for each E."""
    low, high = scene.law.domain["tokens"]
    tokens = np.geomspace(low / STRETCH, high * STRETCH, PLACES)
    for knobs, sizes in scene.lines.items():
        n = scene.sizes(knobs)
        losses = scene.law.loss(scene.points(knobs, n[:, None], tokens))
        needed = np.array([np.interp(-level, -row, np.log(tokens), np.nan, np.nan) for row in losses])
        reached = np.isfinite(needed)
        n, needed = n[reached], np.exp(needed[reached])
        solid = scene.law.covers(scene.points(knobs, n, needed))
        _line(axes, sizes.memory(n) / 1e9, 6e18 * sizes.active(n) * needed, solid, knobs)
    _memory(axes)
    axes.set_yscale("log")
    axes.set_ylabel("training compute (FLOPs)")
    axes.set_title(f"all reach a loss of {level:.3f}", fontsize=10)


def equal_compute(axes: Axes, scene: Scene, flops: float) -> None:
    """Loss over memory for each E, all trained with the same compute: a larger model sees fewer tokens."""
    drawn = []
    for knobs, sizes in scene.lines.items():
        n = scene.sizes(knobs)
        points = scene.points(knobs, n, flops / 6e18 / sizes.active(n))
        memory, losses = sizes.memory(n) / 1e9, scene.law.loss(points)
        _line(axes, memory, losses, scene.law.covers(points), knobs)
        drawn.append(np.array([memory, losses]))
    memory, losses = np.concatenate(drawn, axis=1)
    top = losses.min() + LOSS_RANGE
    axes.set_ylim(losses.min() - 0.05 * LOSS_RANGE, min(top, losses.max()))
    axes.set_xlim(memory[losses <= top].min() / 1.1, memory[losses <= top].max() * 1.1)
    _memory(axes)
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(f"all trained with {flops:.1e} FLOPs", fontsize=10)


# How lines and axes look


def name_of(knobs: Knobs) -> str:
    return "dense" if knobs == DENSE else f"E = {knobs[0]}"


def _colour(experts: float) -> str:
    place = int(np.abs(np.log(np.array(SWEPT["experts"]) / experts)).argmin())
    return "black" if place == 0 else f"C{place - 1}"


def _by_experts(experts: Array) -> Iterable[tuple[str, str, Mask]]:
    """Label, colour and mask of the runs nearest to each E of the paper; the label says "about" for any other E."""
    nearest = np.abs(np.log(experts[:, None] / SWEPT["experts"])).argmin(axis=1)
    for place in np.unique(nearest):
        value, chosen = SWEPT["experts"][place], nearest == place
        about = "about " if np.any(experts[chosen] != value) else ""
        yield ("dense" if value == 1 and not about else f"E = {about}{value}"), _colour(value), chosen


def _line(axes: Axes, x: Array, y: Array, solid: Mask, knobs: Knobs) -> None:
    colour = _colour(knobs[0])
    axes.plot(x, y, "--", lw=0.8, color=colour, alpha=0.7)
    axes.plot(x, np.where(solid, y, np.nan), lw=1.8, color=colour, label=name_of(knobs))


def _billions(axes: Axes, name: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(f"{name} (billions)")
    _sparse_ticks(axes.xaxis)


def _compute(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("training compute (FLOPs)")


def _memory(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("memory: INT4 weights and KV cache (GB)")
    _sparse_ticks(axes.xaxis)


def _sparse_ticks(axis: Axis) -> None:
    """Labels the powers of ten with plain numbers, and if there are few of them also 2 and 5 times these."""
    low, high = axis.get_view_interval()
    axis.set_major_formatter("{x:g}")
    few = high / low < 300
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if few and f"{value:e}"[0] in "25" else "")
