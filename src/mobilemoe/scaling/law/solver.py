"""Minimises the Huber loss for many starts or resamples at once, by damped Gauss-Newton in NumPy.

The parameters have coordinates that may take any value: ln A, ln B, ln c, ln φ, ln E_max, and
-ln(1 - κ); the others unchanged. N and D are first divided by their geometric means (`forms.in_units` undoes it),
which all but removes the correlation of a factor with its exponent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mobilemoe.scaling.law.forms import BLANK, INDEX, Form, in_units, terms
from mobilemoe.scaling.law.runs import Points, Runs

Array = NDArray[np.float64]

HUBER = 1e-3  # the residual of ln L from which the misfit grows linearly
LOGS = ("A", "phi", "B", "c", "E_max")
# Bounds of the coordinates: far from any meaningful law, and such that every power stays finite.
_WALLS: dict[str, tuple[float, float]] = {"A": (-25, 15), "B": (-25, 15), "c": (-25, 15), "delta": (-8, 8)}
_WALLS |= {"omega": (-8, 8), "sigma": (-4, 4)}
_WALLS |= {"alpha": (-5, 1), "beta": (-5, 1), "gamma": (-4, 4), "zeta": (-4, 4), "kappa": (-4, 6)}
_WALLS |= {"phi": (-4, 2.5), "E_max": (0.7, 8)}
_FACTORS = [INDEX["A"], INDEX["B"], INDEX["c"]]
LONGEST_STEP = 1.0  # in any coordinate


@dataclass(frozen=True)
class Problem:
    """One form and some runs; `free` are the parameters to fit, and the others have no effect."""

    form: Form
    runs: Runs
    free: tuple[str, ...]

    @cached_property
    def units(self) -> tuple[float, float]:
        points = self.runs.points
        return float(np.exp(np.log(points.n_active).mean())), float(np.exp(np.log(points.tokens).mean()))

    @cached_property
    def scale(self) -> float:
        return float(np.exp(np.log(self.runs.loss).mean()))

    @cached_property
    def shares(self) -> Array:
        """The units of A, B and c in which the mean loss is 1."""
        term: float = self.scale ** (1 / self.form.power)
        return np.array([term, term, self.scale])

    @cached_property
    def points(self) -> Points:
        """The runs in units of their geometric means."""
        theirs = self.runs.points
        return Points(
            n_active=theirs.n_active / self.units[0],
            tokens=theirs.tokens / self.units[1],
            experts=theirs.experts,
            granularity=theirs.granularity,
            shared=theirs.shared,
        )

    @cached_property
    def log_loss(self) -> Array:
        result: Array = np.log(self.runs.loss / self.scale)
        return result

    @cached_property
    def bounds(self) -> tuple[Array, Array]:
        low, high = np.array([_WALLS[name] for name in self.free], float).T
        return low, high

    # Coordinates

    def coordinates(self, theta: Array) -> Array:
        """Converts [..., the form's parameters] for 1e9 and nats to coordinates [..., free]."""
        inner = self.form.full(in_units(theta, self.form, *self.units))
        inner[..., _FACTORS] /= self.shares
        inner[..., INDEX["kappa"]] = -np.log1p(-inner[..., INDEX["kappa"]])
        logs = [INDEX[name] for name in LOGS]
        inner[..., logs] = np.log(np.maximum(inner[..., logs], 1e-300))
        return np.clip(inner[..., [INDEX[name] for name in self.free]], *self.bounds)

    def whole(self, x: Array) -> Array:
        """Converts coordinates [..., free] to values [..., NAMES] in the runs' own units."""
        values = np.tile(BLANK, (*x.shape[:-1], 1))
        for place, name in enumerate(self.free):
            coordinate = x[..., place]
            if name in LOGS:
                coordinate = np.exp(coordinate)
            elif name == "kappa":
                coordinate = -np.expm1(-coordinate)
            values[..., INDEX[name]] = coordinate
        return values

    def theta(self, x: Array) -> Array:
        """Converts coordinates [..., free] to [..., the form's parameters] for 1e9 and nats."""
        values = self.whole(x)
        values[..., _FACTORS] *= self.shares
        inner = values[..., [INDEX[name] for name in self.form.parameters]]
        return in_units(inner, self.form, 1 / self.units[0], 1 / self.units[1])

    # Misfit

    def residuals(self, x: Array) -> Array:
        """ln(predicted / measured loss): from [S, free] to [S, runs]."""
        whole = self.whole(x)[:, None, :]
        parts = terms(self.form, whole, self.points)
        result: Array = np.log(self.form.reducible(parts) + whole[..., INDEX["c"]]) - self.log_loss
        return result

    def slopes(self, x: Array) -> tuple[Array, Array]:
        """`residuals`, and their derivatives with respect to the coordinates: [S, free, runs]."""
        whole = self.whole(x)[:, None, :]
        parts, points = terms(self.form, whole, self.points), self.points
        reducible = self.form.reducible(parts)
        loss = reducible + whole[..., INDEX["c"]]
        outer = self.form.power * reducible / (parts.size + parts.data) / loss  # the power's derivative, for ln loss
        size, data = parts.size * outer, parts.data * outer
        log_n, log_d, s = np.log(points.n_active), np.log(points.tokens), points.shared
        slopes = np.empty((len(x), len(self.free), len(self.runs)))
        for place, name in enumerate(self.free):
            value = whole[..., INDEX[name]]
            if name in ("A", "alpha", "delta", "gamma", "sigma"):
                by: Any = {"A": 1.0, "alpha": log_n, "delta": parts.log_x, "gamma": parts.log_x * log_n, "sigma": -s}[
                    name
                ]
                slope = size * by
            elif name in ("B", "beta", "omega", "zeta"):
                by = {"B": 1.0, "beta": log_d, "omega": parts.log_x, "zeta": parts.log_x * log_d}[name]
                slope = data * by
            elif name == "c":
                slope = value / loss
            elif name in ("kappa", "phi"):
                kappa, phi = whole[..., INDEX["kappa"]], whole[..., INDEX["phi"]]
                power = np.exp(-phi * parts.log_g)
                by = (kappa - 1) * (1 - power) if name == "kappa" else -kappa * phi * parts.log_g * power
                slope = size / parts.fine * by
            else:  # E_max, through ln Ê
                slope = (
                    size * (whole[..., INDEX["delta"]] + whole[..., INDEX["gamma"]] * log_n)
                    + data * (whole[..., INDEX["omega"]] + whole[..., INDEX["zeta"]] * log_d)
                ) * _saturation(points.experts, value, parts.log_x)
            slopes[:, place] = slope
        return np.log(loss) - self.log_loss, slopes


def _saturation(experts: Array, E_max: Array, log_x: Array) -> Array:
    """The derivative of ln Ê with respect to ln E_max."""
    m = 1 / E_max
    start = 1 / (1 - m)
    result: Array = np.exp(log_x) * m * (1 - start**2 / (experts - 1 + start) ** 2)
    return result


def misfit(residuals: Array, weights: Array) -> Array:
    """The sum of the Huber loss of [S, runs], where each run counts `weights` times: [S]."""
    size = np.abs(residuals)
    each = np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2))
    result: Array = (weights * each).sum(1)
    return result


class Cost(Protocol):
    """What a prior adds to the misfit of coordinates [S, free]; see prior.Prior."""

    def at(self, rows: NDArray[np.intp], /) -> Cost: ...
    def cost(self, x: Array, /) -> Array: ...
    def slope(self, x: Array, /) -> Array: ...
    @property
    def curve(self) -> Array: ...


@dataclass(frozen=True)
class Descent:
    """Where each start ended: coordinates [S, free], misfit with priors [S], and whether it had converged."""

    x: Array
    misfit: Array
    settled: NDArray[np.bool_]


def descend(
    problem: Problem,
    starts: Array,
    weights: Array,
    steps: int = 200,
    tolerance: float = 1e-6,
    prior: Cost | None = None,
) -> Descent:
    """Minimises the misfit from each of `starts` [S, free]; run j counts `weights` [S or 1, runs] times.

    Iteratively reweighted least squares makes the Huber loss quadratic, and Levenberg's damping makes each step go
    down. A start has converged when three steps in a row gain less than `tolerance` of the misfit. prior: what is
    added to the misfit.
    """
    x = np.array(starts, np.float64)
    weights = np.broadcast_to(weights, (len(x), len(problem.runs)))
    going = np.arange(len(x))

    def value(x: Array) -> Array:
        data = misfit(problem.residuals(x), weights[going])
        return data if prior is None else data + prior.at(going).cost(x)

    best = value(x)
    damping, calm = np.full(len(x), 1e-3), np.zeros(len(x), int)
    for _ in range(steps):
        residuals, slopes = problem.slopes(x[going])
        w = weights[going] / np.maximum(np.abs(residuals) / HUBER, 1)
        weighted = slopes * w[:, None, :]
        curve = weighted @ slopes.transpose(0, 2, 1)
        downhill = -(weighted @ residuals[:, :, None])
        diagonal = np.einsum("sii->si", curve)
        if prior is not None:
            diagonal += prior.curve
            downhill -= prior.at(going).slope(x[going])[:, :, None]
        # The minimum keeps a parameter unchanged that these runs do not determine.
        diagonal += damping[going, None] * diagonal + 1e-9 * diagonal.max(1, keepdims=True) + 1e-300
        step = np.linalg.solve(curve, downhill)[:, :, 0]
        step *= np.minimum(1, LONGEST_STEP / np.maximum(np.abs(step).max(1, keepdims=True), 1e-300))
        tried = np.clip(x[going] + step, *problem.bounds)
        reached = value(tried)
        won = best[going] - reached
        good = won >= 0
        small = won <= tolerance * best[going]
        x[going[good]], best[going[good]] = tried[good], reached[good]
        damping[going] = np.clip(damping[going] * np.where(good, 0.2, 8), 1e-9, 1e9)
        calm[going] = np.where(small, calm[going] + 1, 0)
        going = going[(calm[going] < 3) & (damping[going] < 1e9)]
        if not len(going):
            break
    settled = np.ones(len(x), bool)
    settled[going] = False
    return Descent(x, best, settled)
