"""Compares a law with nested forms and three simple rivals: does it need all of its parameters?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.errors import DataError
from mobilemoe.scaling.law.fit import bic, fit, split
from mobilemoe.scaling.law.forms import FORMS
from mobilemoe.scaling.law.runs import FIELDS, Points, Runs
from mobilemoe.scaling.law.solver import HUBER

Array = NDArray[np.float64]
Predictor = Callable[[Points], Array]


@dataclass(frozen=True)
class Row:
    """One model of the loss: how many `parameters` were fitted, errors in nats a token, and BIC (lower is better)."""

    name: str
    rival: bool  # a simple baseline, not a law
    parameters: int
    rmse: float
    bic: float
    holdout_rmse: float | None  # None: it cannot predict the runs held out

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(runs: Runs, holdout: float | None = None, seed: int = 0) -> list[Row]:
    """The forms whose knobs vary in `runs`, and the baselines, the best by BIC first. Runs that repeat data are left
    out.

    holdout: share of the runs, those of the largest compute, that each model predicts from the others; None as `fit`.
    """
    once = runs.at(~runs.repeated) if not runs.repeated.all() else runs
    varies = {name for name in FIELDS if len(np.unique(getattr(once.points, name))) > 1}
    rows: list[Row] = []
    for form in FORMS.values():
        if form.columns and not varies & {*form.columns}:
            continue
        try:
            found = fit(once, form.name, seed=seed, holdout=holdout)
        except DataError:
            if form.name == "chinchilla":
                raise
            continue  # too few runs for a larger form
        held = found.holdout
        rows.append(Row(form.name, False, len(found.free), found.rmse, found.bic, held.rmse if held else None))
    rest, large = split(once, holdout) if holdout != 0 else (once, None)
    for name, rival in RIVALS.items():
        made = rival(once)
        if made is None:
            continue
        predicted, parameters = made[0](once.points), made[1]
        refitted = rival(rest) if large is not None else None
        error = None if refitted is None or large is None else _rmse(refitted[0](large.points), large.loss)
        rows.append(
            Row(name, True, parameters, _rmse(predicted, once.loss), bic(predicted, once.loss, parameters), error)
        )
    return sorted(rows, key=lambda row: row.bic)


def _rmse(predicted: Array, loss: Array) -> float:
    return float(np.sqrt(np.mean((predicted - loss) ** 2)))


def _constant(runs: Runs) -> tuple[Predictor, int]:
    middle = float(np.median(runs.loss))
    return lambda points: np.full(points.shape, middle), 1


def _log_linear(runs: Runs) -> tuple[Predictor, int]:
    """ln L as a plane over ln N, ln D and whichever of ln E, ln g, s vary: a power law without irreducible loss."""
    columns = [name for name in FIELDS if len(np.unique(getattr(runs.points, name))) > 1]

    def design(points: Points) -> Array:
        return np.stack(
            [np.ones(points.shape)]
            + [getattr(points, name) if name == "shared" else np.log(getattr(points, name)) for name in columns],
            axis=1,
        )

    x, y = design(runs.points), np.log(runs.loss)
    weights, solution = np.ones(len(y)), np.zeros(x.shape[1])
    for _ in range(60):  # the same Huber loss as the laws' own
        root = np.sqrt(weights)
        solution = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0]
        weights = 1 / np.maximum(np.abs(x @ solution - y) / HUBER, 1)
    return lambda points: np.exp(design(points) @ solution), x.shape[1]


def _chinchilla_each(runs: Runs) -> tuple[Predictor, int] | None:
    """A separate Chinchilla law for each (E, g, s); None if one of them has too few runs, or there is only one."""
    kinds = np.stack([getattr(runs.points, name) for name in FIELDS[2:]], axis=1)
    laws = {}
    for kind in np.unique(kinds, axis=0):
        try:
            laws[tuple(kind)] = fit(runs.at((kinds == kind).all(1)), "chinchilla").law
        except DataError:
            return None
    if len(laws) < 2:
        return None

    def predict(points: Points) -> Array:
        asked = np.stack([getattr(points, name) for name in FIELDS[2:]], axis=1)
        loss = np.full(points.shape, np.nan)
        for kind, law in laws.items():
            here = (asked == kind).all(1)
            loss[here] = law.loss(points.at(here))
        return loss

    return predict, 5 * len(laws)


RIVALS: dict[str, Callable[[Runs], tuple[Predictor, int] | None]] = {
    "constant": _constant,
    "log-linear": _log_linear,
    "chinchilla per kind": _chinchilla_each,
}
