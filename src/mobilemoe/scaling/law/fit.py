"""Fitting a law to runs: many starts by variable projection, Gauss-Newton from the best, and L-BFGS to the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.errors import DataError, MissingExtraError, UsageError
from mobilemoe.scaling.law.bootstrap import Bootstrap, bootstrap
from mobilemoe.scaling.law.forms import PHI, Form, form_named, terms
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.runs import KNOBS, Points, Runs, count, few
from mobilemoe.scaling.law.solver import HUBER, Problem, descend, misfit

Array = NDArray[np.float64]

DRAWS = 192  # of the exponents, before the factors are projected out
STARTS = 32  # of those that are followed down
FINALISTS = 4
POLISHED = 2
HOLDOUT = 0.2  # of the runs are foretold where a table does not say which
FAR = 10  # times the middle error: runs further from the law than that are named
FAINT = 1e-6  # of the largest singular value of the slopes: below it runs do not determine a direction


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """Runs foretold by a fit to the others: those that the table registered for it, or those of largest compute."""

    registered: bool
    ids: tuple[str, ...]
    loss: Array
    predicted: Array

    @property
    def mae(self) -> float:
        return float(np.abs(self.predicted - self.loss).mean())

    @property
    def rmse(self) -> float:
        return float(np.sqrt(np.mean((self.predicted - self.loss) ** 2)))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law fitted to `runs`, and how well. Errors are in nats a token, `predicted` minus the loss."""

    law: Law
    runs: Runs  # those it was fitted to
    predicted: Array
    free: tuple[str, ...]  # the parameters that were fitted; the others were held at no effect
    misfit: float  # the sum of the Huber losses of ln L
    converged: bool
    notes: tuple[str, ...]  # what was held, left out or doubtful, a sentence each
    holdout: Holdout | None = None
    apart: Fit | None = None  # the same law fitted to the runs that repeat data
    near: Fit | None = None  # and without the runs that lie far from the law, where there are such
    failed_resamples: int = 0

    @property
    def rmse(self) -> float:
        return float(np.sqrt(np.mean((self.predicted - self.runs.loss) ** 2)))

    @property
    def mae(self) -> float:
        return float(np.abs(self.predicted - self.runs.loss).mean())

    @property
    def bic(self) -> float:
        return bic(self.predicted, self.runs.loss, len(self.free))


def bic(predicted: Array, loss: Array, parameters: int) -> float:
    """Schwarz's criterion of ln L; lower is better.

    Residuals are taken as Laplace's: beyond its first thousandth Huber's loss is the likelihood of that distribution.
    """
    scale = max(float(np.abs(np.log(predicted / loss)).mean()), 1e-12)
    return float(2 * len(loss) * (1 + np.log(2 * scale)) + parameters * np.log(len(loss)))


def fit(
    runs: Runs,
    law: str = "joint",
    *,
    bootstraps: int = 0,
    seed: int = 0,
    holdout: float | None = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Fit:
    """The law called `law` (forms.FORMS) with the constants that fit `runs` best.

    The misfit is the Huber loss (delta 1e-3) of ln(predicted) - ln(loss). Runs that repeat data are left out, and
    fitted apart. Terms whose knob does not vary are held at no effect. bootstraps: resamples of the runs for
    intervals (progress(done, all) tells how far they are). holdout: share of the runs, those of the largest compute,
    that a fit to the others has to foretell, None: those that `held_out` of the runs marks, or without such marks a
    share of HOLDOUT; the law itself is always fitted to all. DataError if the runs are too few.
    """
    form = form_named(law)
    if bootstraps < 0 or seed < 0:
        raise UsageError(f"bootstraps is {bootstraps} and seed {seed}, but neither may be below 0")
    if holdout is not None and not 0 <= holdout <= 0.5:
        raise UsageError(f"holdout is {holdout:g}, but must be a share from 0 to 0.5")
    once, again = runs.at(~runs.repeated), runs.at(runs.repeated)
    if not len(once):
        once, again = runs, runs.at(slice(0))
    found = _fit_once(form, once, seed)
    notes = list(found.notes)
    if len(once) == len(runs) and runs.repeated.all():
        notes.append("all runs repeat data: the law is one of repeated data")
    apart = None
    if len(again):
        notes.append(f"{count(len(again))} with repeated data are left out, and fitted apart")
        try:
            apart = _fit_once(form, again, seed)
        except DataError as fault:
            notes.append(f"the runs that repeat data cannot be fitted apart: {fault}")
    near = None
    if len(far := _far(once, found.predicted)):
        names = few(once.ids[place] for place in far)
        notes.append(
            f"{count(len(far))} more than {FAR} times the middle error away from the law ({names}): without, the "
            "constants, and their exponents most, may change much"
        )
        try:
            near = _fit_once(form, once.at(np.delete(np.arange(len(once)), far)), seed)
        except DataError as fault:
            notes.append(f"without them the law cannot be fitted: {fault}")
    draws = Bootstrap.none()
    if bootstraps:
        draws = bootstrap(_problem(form, once)[0], found.law.theta, bootstraps, seed, progress)
        if draws.failed:
            notes.append(f"{draws.failed} of {bootstraps} resamples did not converge and are left out of the intervals")
    held = None
    if holdout != 0:
        try:
            held = _hold_out(form, once, holdout, seed)
        except DataError as fault:
            notes.append(f"there is no forecast of the largest runs, as the others cannot be fitted: {fault}")
    forecast = None if held is None else held.rmse
    return Fit(
        law=Law(**vars(found.law) | {"samples": draws.samples, "forecast_rmse": forecast}),
        runs=once,
        predicted=found.predicted,
        free=found.free,
        misfit=found.misfit,
        converged=found.converged,
        notes=tuple(notes),
        holdout=held,
        apart=apart,
        near=near,
        failed_resamples=draws.failed,
    )


def registered(runs: Runs) -> NDArray[np.bool_] | None:
    """Which runs the table says are to be foretold; None where it marks none of them, or all."""
    marks = runs.held_out
    return None if marks is None or not marks.any() or marks.all() else marks


def split(runs: Runs, share: float | None) -> tuple[Runs, Runs]:
    """The runs without, and the ones with, the largest compute 6 N D; runs of equal compute are not torn apart.

    share None: those that the table registered, and where it does not, HOLDOUT of the runs.
    """
    if share is None and (marks := registered(runs)) is not None:
        return runs.at(~marks), runs.at(marks)
    share = HOLDOUT if share is None else share
    order = np.argsort(runs.flops, kind="stable")
    border = runs.flops[order[len(runs) - max(1, round(share * len(runs)))]]
    large = runs.flops >= border * (1 - 1e-9)
    return runs.at(~large), runs.at(large)


def _hold_out(form: Form, runs: Runs, share: float | None, seed: int) -> Holdout:
    rest, held = split(runs, share)
    predicted = _fit_once(form, rest, seed).law.loss(held.points)
    marked = share is None and registered(runs) is not None
    return Holdout(registered=marked, ids=held.ids, loss=held.loss, predicted=predicted)


def _fit_once(form: Form, runs: Runs, seed: int) -> Fit:
    problem, notes = _problem(form, runs)
    starts = _starts(problem, seed)
    ones = np.ones((1, len(runs)))
    near = descend(problem, starts, ones, steps=40)
    ended = descend(problem, near.x[np.argsort(near.misfit)[:FINALISTS]], ones, steps=400, tolerance=1e-7)
    best = np.argsort(ended.misfit)[:POLISHED]
    ends = [_polish(problem, x, bool(done)) for x, done in zip(ended.x[best], ended.settled[best], strict=True)]
    x, value, converged = min(ends, key=lambda end: end[1])
    notes += _doubts(problem, x)
    if not converged:
        notes.append("the fit had not settled when its steps ran out: take the constants with care")
    points = runs.points
    parameters = dict(zip(form.parameters, map(float, problem.theta(x)), strict=True))
    domain = {name: getattr(points, name) for name in ("n_active", "tokens", *form.columns)}
    fitted = Law(
        form=form.name,
        parameters=parameters,
        rmse=0.0,
        domain={name: (float(values.min()), float(values.max())) for name, values in domain.items()},
        source=f"fitted to {len(runs)} runs",
        counts_embedding=runs.counts_embedding,
    )
    predicted = fitted.loss(points)
    rmse = float(np.sqrt(np.mean((predicted - runs.loss) ** 2)))
    return Fit(
        law=Law(**vars(fitted) | {"rmse": rmse}),
        runs=runs,
        predicted=predicted,
        free=problem.free,
        misfit=value,
        converged=converged,
        notes=tuple(notes),
    )


# What the runs can say


def _problem(form: Form, runs: Runs) -> tuple[Problem, list[str]]:
    """The form without the terms that these runs say nothing about, and a sentence for each of those."""
    points = runs.points
    levels = {name: len(np.unique(getattr(points, name))) for name in KNOBS}
    for name in ("n_active", "tokens"):
        if levels[name] < 3:
            raise DataError(
                f"{name} takes {levels[name]} value{'s' if levels[name] > 1 else ''} in these runs: every law needs at "
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
            f"there are {len(runs)} runs, but the law {form.name!r} has {len(free)} parameters to fit and needs at "
            f"least {len(free) + 2}: take a smaller law, such as chinchilla, or more runs"
        )
    return Problem(form, runs, free), notes


def _terms_of(form: Form, column: str) -> set[str]:
    """The parameters of the form that do nothing while `column` does not vary."""
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


def _doubts(problem: Problem, x: Array) -> list[str]:
    """Sentences on parameters that the runs leave open, or that ran into the fit's walls."""
    doubts = []
    _, slopes = problem.slopes(x[None])
    _, sizes, directions = np.linalg.svd(slopes[0].T, full_matrices=False)
    names = [problem.free[np.abs(row).argmax()] for row in directions[sizes < FAINT * sizes[0]]]
    low, high = problem.walls
    names += [name for name, at, a, b in zip(problem.free, x, low, high, strict=True) if min(at - a, b - at) < 1e-6]
    if names := sorted({*names}, key=problem.free.index):
        doubts.append(
            f"these runs do not determine {', '.join(names)}: the constants belong together, and alone mean little"
        )
    return doubts


def _far(runs: Runs, predicted: Array) -> NDArray[np.intp]:
    """Places of the runs that the law misses by far more than the others, the worst first."""
    error = np.abs(predicted - runs.loss)
    far = np.flatnonzero(error > max(FAR * float(np.median(error)), 0.005 * float(np.median(runs.loss))))
    return far[np.argsort(-error[far])]


# Starts and the end


def _starts(problem: Problem, seed: int) -> Array:
    """Coordinates [STARTS, free]: exponents drawn at random, the factors A, B, c by non-negative least squares."""
    try:
        from scipy.optimize import nnls
    except ImportError:
        raise MissingExtraError("fitting a law", "scaling") from None
    draw = np.random.default_rng(seed)
    x = np.zeros((DRAWS, len(problem.free)))
    spread: dict[str, tuple[float, float]] = {"alpha": (-1.0, -0.03), "beta": (-1.0, -0.03), "phi": (-1.5, 1.0)}
    spread |= {"kappa": (-0.1, 0.3), "sigma": (-0.1, 0.3), "E_max": (2.5, 6.5)}
    for place, name in enumerate(problem.free):
        if name not in ("A", "B", "c"):
            x[:, place] = draw.uniform(*spread.get(name, (-0.3, 0.3)), DRAWS)
    factors = [problem.free.index(name) for name in ("A", "B", "c")]
    whole = problem.whole(x)[:, None, :]  # the factors are e^0 so far: the terms are the columns of a linear problem
    parts = terms(problem.form, whole, problem.points)
    loss = np.exp(problem.log_loss)
    off = np.empty(DRAWS)
    for row, (size, data) in enumerate(zip(parts.size, parts.data, strict=True)):
        design = np.stack([size, data, np.ones_like(size)], 1) / loss[:, None]  # ln(p / L) is p / L - 1 near the loss
        found, off[row] = nnls(design, np.ones(len(loss)))
        x[row, factors] = np.log(np.maximum(found, 1e-3))
    best = x[np.argsort(off)[:STARTS]]
    return np.clip(best, *problem.walls)


def _polish(problem: Problem, x: Array, settled: bool) -> tuple[Array, float, bool]:
    """L-BFGS on the Huber loss itself, with its own derivatives: the end, its misfit, and whether it settled."""
    from scipy.optimize import minimize

    ones = np.ones((1, len(problem.runs)))
    before = float(misfit(problem.residuals(x[None]), ones)[0])
    unit = max(before, 1e-18)  # the misfit is of the order of 1e-6 a run, and L-BFGS' own tolerances are for 1

    def value(at: Array) -> tuple[float, Array]:
        residuals, slopes = problem.slopes(at[None])
        pull = np.clip(residuals[0], -HUBER, HUBER)
        return float(misfit(residuals, ones)[0]) / unit, slopes[0] @ pull / unit

    bounds: Any = list(zip(*problem.walls, strict=True))
    ended = minimize(value, x, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300, "ftol": 1e-12})
    after = float(ended.fun) * unit
    if after < before:
        return np.asarray(ended.x), after, settled or bool(ended.success)
    return x, before, settled or bool(ended.success)
