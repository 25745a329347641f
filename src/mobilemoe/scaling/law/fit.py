"""Fits a law to runs and judges the fit: by runs that it predicts, runs far from it, and runs that repeat data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.counted import counted
from mobilemoe.errors import DataError, UsageError
from mobilemoe.scaling.law.bootstrap import Bootstrap, bootstrap
from mobilemoe.scaling.law.domain import THIN, hull_of, share_of_box
from mobilemoe.scaling.law.forms import Form, form_named
from mobilemoe.scaling.law.identify import FAR, doubts, far_from, problem_of, replicates, unsettled
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.prior import SAID
from mobilemoe.scaling.law.runs import Runs, few
from mobilemoe.scaling.law.search import search

Array = NDArray[np.float64]

HOLDOUT = 0.2  # the share of the runs that are predicted where a table does not mark any


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """Runs predicted by a fit to the others: those that the table registered for it, or those of largest compute."""

    registered: bool
    ids: tuple[str, ...]
    loss: Array
    predicted: Array
    fitted_to: int  # how many runs the fit that predicts them had

    @property
    def split(self) -> str:
        """Which runs were predicted from which, in words."""
        which = "registered by the column held_out" if self.registered else "of the largest compute"
        return f"{counted(len(self.ids), 'run')} {which}, by a fit to {counted(self.fitted_to, 'other')}"

    @property
    def mae(self) -> float:
        return float(np.abs(self.predicted - self.loss).mean())

    @property
    def rmse(self) -> float:
        return float(np.sqrt(np.mean((self.predicted - self.loss) ** 2)))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law fitted to `runs`, and how good the fit is. Errors are in nats a token, `predicted` minus measured loss."""

    law: Law
    runs: Runs  # the runs that it was fitted to
    predicted: Array
    free: tuple[str, ...]  # the fitted parameters; the others are fixed at no effect
    misfit: float  # the sum of the Huber losses of ln L
    converged: bool
    notes: tuple[str, ...]  # what was fixed, left out or doubtful, a sentence each
    holdout: Holdout | None = None
    apart: Fit | None = None  # the same law fitted to the runs that repeat data
    near: Fit | None = None  # the same law without the runs far from it, if there are any and they were kept
    whole: Fit | None = None  # the same law with the runs far from it, if they were left out
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

    Residuals are taken to follow Laplace's distribution, whose likelihood is the Huber loss beyond its first
    thousandth.
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
    without_outliers: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Fit:
    """Fits the law called `law` (forms.FORMS) to `runs`.

    The misfit is the Huber loss (delta 1e-3) of ln(predicted) - ln(loss). Runs that repeat data are left out, and
    fitted separately. Terms whose knob does not vary are fixed at no effect. bootstraps: resamples of the runs for
    intervals (progress(done, all) tells how far they are). holdout: share of the runs, those of the largest compute,
    that a fit to the others has to predict, None: those that `held_out` of the runs marks, or without such marks a
    share of HOLDOUT; the law itself is always fitted to all. without_outliers: runs far from a first fit
    (`identify.far_from`) are left out of a second one, which is the law. Of the runs to predict none is left out.
    DataError if the runs are too few.
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
        notes.append(f"{counted(len(again), 'run')} with repeated data left out, and fitted apart")
        try:
            apart = _fit_once(form, again, seed)
        except DataError as fault:
            notes.append(f"the runs that repeat data cannot be fitted apart: {fault}")
    notes += [said for said in (replicates(once), unsettled(once)) if said]
    near, whole, left_out = None, None, ()
    every = once
    if len(far := far_from(once, found.predicted)):
        left_out = tuple(once.ids[place] for place in far)
        notes.append(
            f"{counted(len(far), 'run')} more than {FAR} times the middle error away from the law ({few(left_out)}): "
            "without, the constants, and their exponents most, may change much"
        )
        kept = np.delete(np.arange(len(once)), far)
        try:
            near = _fit_once(form, once.at(kept), seed)
        except DataError as fault:
            notes.append(f"without them the law cannot be fitted: {fault}")
        if without_outliers and near is not None:
            found, whole, near, once = near, found, None, once.at(kept)
            notes += [note for note in found.notes if note not in notes]
    elif without_outliers:
        notes.append(f"no run is more than {FAR} times the middle error away from the law: none is left out")
    draws = Bootstrap.none()
    if bootstraps:
        problem = problem_of(form, once)[0]
        draws = bootstrap(problem, found.law.theta, bootstraps, seed, progress)
        if draws.failed:
            notes.append(
                f"{draws.failed} of {counted(bootstraps, 'resample')} had not settled when their steps ran out: they "
                "stay in the intervals where they stood"
            )
    held = None
    if holdout != 0:
        try:
            held = _hold_out(form, every, holdout, seed, without_outliers)
        except DataError as fault:
            notes.append(f"there is no forecast of the largest runs, as the others cannot be fitted: {fault}")
    settled: dict[str, Any] = {"samples": draws.samples, "weak_prior": SAID if bootstraps else ""}
    if held is not None:
        settled |= {"forecast_rmse": held.rmse, "forecast_split": held.split}
    if whole is not None:
        settled |= {"left_out": left_out, "with_outliers": whole.law.parameters}
    return Fit(
        law=Law(**vars(found.law) | settled),
        runs=once,
        predicted=found.predicted,
        free=found.free,
        misfit=found.misfit,
        converged=found.converged,
        notes=tuple(notes),
        holdout=held,
        apart=apart,
        near=near,
        whole=whole,
        failed_resamples=draws.failed,
    )


def registered(runs: Runs) -> NDArray[np.bool_] | None:
    """Which runs the table says are to be predicted; None where it marks none of them, or all."""
    marks = runs.held_out
    return None if marks is None or not marks.any() or marks.all() else marks


def split(runs: Runs, share: float | None) -> tuple[Runs, Runs]:
    """The runs without, and the ones with, the largest compute 6 N D; runs of equal compute stay together.

    share None: the runs that the table marks as held out are split off, or without marks the share HOLDOUT.
    """
    if share is None and (marks := registered(runs)) is not None:
        return runs.at(~marks), runs.at(marks)
    share = HOLDOUT if share is None else share
    order = np.argsort(runs.flops, kind="stable")
    border = runs.flops[order[len(runs) - max(1, round(share * len(runs)))]]
    large = runs.flops >= border * (1 - 1e-9)
    return runs.at(~large), runs.at(large)


def _hold_out(form: Form, runs: Runs, share: float | None, seed: int, without_outliers: bool) -> Holdout:
    rest, held = split(runs, share)
    found = _fit_once(form, rest, seed)
    if without_outliers and len(far := far_from(rest, found.predicted)):
        found = _fit_once(form, rest.at(np.delete(np.arange(len(rest)), far)), seed)
    marked = share is None and registered(runs) is not None
    predicted = found.law.loss(held.points)
    return Holdout(registered=marked, ids=held.ids, loss=held.loss, predicted=predicted, fitted_to=len(found.runs))


def _fit_once(form: Form, runs: Runs, seed: int) -> Fit:
    problem, notes = problem_of(form, runs)
    x, value, converged = search(problem, seed)
    notes += doubts(problem, x, value)
    if (share := share_of_box(hull := hull_of(runs.points))) < THIN:
        notes.append(
            f"N and D of these runs cover {share:.0%} of the box of their ranges: the domain is that ribbon, and the "
            "law only extrapolates to models that are small for their tokens, or large, beside it"
        )
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
        source=f"fitted to {counted(len(runs), 'run')}",
        hull=hull,
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
