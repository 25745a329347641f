"""Which terms of a law the runs determine, and which runs do not fit the law."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mobilemoe.counted import counted
from mobilemoe.errors import DataError
from mobilemoe.scaling.law.forms import PHI, Form
from mobilemoe.scaling.law.prior import Prior
from mobilemoe.scaling.law.runs import FIELDS, Points, Runs
from mobilemoe.scaling.law.solver import HUBER, Problem

Array = NDArray[np.float64]

FAR = 10  # times the median error: runs further from the law than that are named
MANY_REPLICATES = 0.2  # of the runs: replicates that are fewer need no word
UNSETTLED = 2  # times the scatter of longer replicates: that of the shortest needs a word, from so many repeats on:
ENOUGH_REPEATS = 5
FAINT = 1e-12  # of the largest curvature: below it runs do not determine a direction


def problem_of(form: Form, runs: Runs) -> tuple[Problem, list[str]]:
    """The form without the terms that these runs do not determine, and a sentence for each of those."""
    points = runs.points
    levels = {name: len(np.unique(getattr(points, name))) for name in FIELDS}
    for name in ("n_active", "tokens"):
        if levels[name] < 3:
            raise DataError(
                f"{name} takes {counted(levels[name], 'value')} in these runs: every law needs at "
                "least 3, to tell its power from the constant"
            )
    notes: list[str] = []
    held: set[str] = set()
    for column in form.columns:
        names = _terms_of(form, column)
        if levels[column] == 1:
            held |= names
            notes.append(
                f"{column} does not vary in these runs: the law {form.name!r} keeps it without effect "
                f"({', '.join(name for name in form.parameters if name in names)} held)"
            )
        elif column == "granularity" and "phi" in names and levels[column] == 2:
            held.add("phi")
            notes.append(f"granularity takes 2 values, which cannot tell kappa from phi: phi is held at {PHI:g}")
        elif "E_max" in names and levels[column] < 4:
            held.add("E_max")
            notes.append(f"experts take {levels[column]} values, too few for E_max: it is held at 32")
    crossed = {"gamma": "n_active", "zeta": "tokens"}
    for name, column in crossed.items():
        if name in form.parameters and name not in held and not _crossed(form, points, column):
            held.add(name)
            notes.append(f"{column} and {form.knob} do not vary independently of each other: {name} is held at 0")
    free = tuple(name for name in form.parameters if name not in held)
    if len(runs) < len(free) + 2:
        raise DataError(
            f"there {'is' if len(runs) == 1 else 'are'} {counted(len(runs), 'run')}, but the law {form.name!r} has "
            f"{len(free)} parameters to fit and needs at least {len(free) + 2}: take a smaller law, such as "
            "chinchilla, or more runs"
        )
    return Problem(form, runs, free), notes


def _terms_of(form: Form, column: str) -> set[str]:
    """The parameters of the form that have no effect while `column` does not vary."""
    names = {"granularity": {"kappa", "phi"}, "shared": {"sigma"}}.get(column, set())
    if column == form.knob:
        names = names | {"delta", "gamma", "omega", "zeta", "E_max"}
    return names & {*form.parameters}


def _crossed(form: Form, points: Points, column: str) -> bool:
    """Whether the knob and `column` vary independently enough for a term with the product of their logarithms."""
    log_x = np.log1p(getattr(points, str(form.knob)))
    log_n = np.log(getattr(points, column))
    product = (log_x - log_x.mean()) * (log_n - log_n.mean())
    design = np.stack([np.ones_like(log_x), log_x, log_n, product], 1)
    scaled = design / np.maximum(np.linalg.norm(design, axis=0), 1e-12)
    return bool(np.linalg.svd(scaled, compute_uv=False)[-1] > 1e-3)


def doubts(problem: Problem, x: Array, misfit: float) -> list[str]:
    """A sentence on parameters that the runs leave with more than half of a weak prior's variance, at a fit with this
    misfit, or at the bounds of the search.
    """
    prior = Prior.of(problem, misfit)
    residuals, slopes = problem.slopes(x[None])
    scaled = slopes[0] * prior.spread[:, None] / np.sqrt(np.maximum(np.abs(residuals) / HUBER, 1))
    sizes, directions = np.linalg.eigh(scaled @ scaled.T)
    noise = max(prior.noise, FAINT * sizes[-1])
    left = directions**2 @ (noise / (np.maximum(sizes, 0) + noise))  # of each parameter's variance under the prior
    low, high = problem.bounds
    names = [
        name
        for name, share, at, a, b in zip(problem.free, left, x, low, high, strict=True)
        if share > 0.5 or min(at - a, b - at) < 1e-6
    ]
    if not names:
        return []
    return [
        f"these runs say less of {', '.join(names)} than a weak prior would: the constants belong together, and alone "
        "mean little"
    ]


def far_from(runs: Runs, predicted: Array) -> NDArray[np.intp]:
    """Indices of the runs that the law misses by far more than the others, the worst first."""
    error = np.abs(predicted - runs.loss)
    far = np.flatnonzero(error > max(FAR * float(np.median(error)), 0.005 * float(np.median(runs.loss))))
    return far[np.argsort(-error[far])]


def _points(runs: Runs) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The point of each run, and how many runs each point has."""
    _, point, sizes = np.unique(
        np.stack([getattr(runs.points, name) for name in FIELDS]), axis=1, return_inverse=True, return_counts=True
    )
    return point.ravel(), sizes


def _scatter(runs: Runs) -> tuple[float, int]:
    """The standard deviation of runs around the mean of their point, and how many runs are not the first of theirs."""
    point, sizes = _points(runs)
    means = np.bincount(point, runs.loss) / sizes
    repeats = len(runs) - len(sizes)
    return float(np.sqrt(((runs.loss - means[point]) ** 2).sum() / max(repeats, 1))), repeats


def replicates(runs: Runs) -> str | None:
    """A sentence if many runs share N, D, E, g and s with another one."""
    _, sizes = _points(runs)
    spread, repeats = _scatter(runs)
    if repeats < MANY_REPLICATES * len(runs):
        return None
    return (
        f"{sizes[sizes > 1].sum():,} of {counted(len(runs), 'run')} share N, D, E, g and s with another (up to "
        f"{sizes.max():,} at one point), and scatter around their own mean by {spread:.4f} nats: a point weighs as "
        "often as it has runs, and intervals take these as independent; if they differ in learning rate or batch size, "
        "the law describes their middle and not their best, so keep the best run of each point"
    )


def unsettled(runs: Runs) -> str | None:
    """A sentence if replicates of the shortest length scatter far more than longer ones.

    In our third sweep mixtures that ended in the middle of a transition did so, and no law forecast them.
    """
    tokens = runs.points.tokens
    short = _scatter(runs.at(tokens == tokens.min()))
    longer = _scatter(runs.at(tokens > tokens.min()))
    if min(short[1], longer[1]) < ENOUGH_REPEATS or short[0] <= UNSETTLED * longer[0]:
        return None
    return (
        f"runs of the fewest tokens ({tokens.min():g}e9) scatter around their own mean by {short[0]:.4f} nats, longer "
        f"ones by {longer[0]:.4f}: the shortest may end in the middle of a transition, which no law here describes, so "
        "train longer"
    )
