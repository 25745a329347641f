"""Compares a law with nested forms and three simple rivals: does it need all of its parameters?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.counted import counted
from mobilemoe.errors import DataError
from mobilemoe.scaling.law.fit import Fit, bic, fit, split
from mobilemoe.scaling.law.forms import FORMS
from mobilemoe.scaling.law.runs import FIELDS, Points, Runs
from mobilemoe.scaling.law.solver import HUBER

Array = NDArray[np.float64]
Predictor = Callable[[Points], Array]

BETTER = 0.1  # a forecast whose RMSE is lower by a smaller share is not called better


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
    once = _once(runs)
    errors = forecasts(runs, holdout, seed) if holdout != 0 else {}
    rows: list[Row] = []
    for name in _forms(once):
        try:
            found = fit(once, name, seed=seed)
        except DataError:
            if name == "chinchilla":
                raise
            continue  # too few runs for a larger form
        rows.append(Row(name, False, len(found.free), found.rmse, found.bic, errors.get(name)))
    for name, rival in RIVALS.items():
        if (made := rival(once)) is None:
            continue
        predicted, parameters = made[0](once.points), made[1]
        worth = bic(predicted, once.loss, parameters)
        rows.append(Row(name, True, parameters, _rmse(predicted, once.loss), worth, errors.get(name)))
    return sorted(rows, key=lambda row: row.bic)


def forecasts(runs: Runs, holdout: float | None = None, seed: int = 0) -> dict[str, float]:
    """The RMSE of every form and rival that can predict the held-out runs from the others, as `compare` has it."""
    rest, held = split(_once(runs), holdout)
    predictors: dict[str, Predictor] = {}
    if not len(rest):  # all have the same compute
        return {}
    for name in _forms(rest):
        with suppress(DataError):
            predictors[name] = fit(rest, name, seed=seed).law.loss
    for name, rival in RIVALS.items():
        with suppress(DataError):
            if (made := rival(rest)) is not None:
                predictors[name] = made[0]
    errors = {name: _rmse(predict(held.points), held.loss) for name, predict in predictors.items()}
    return {name: error for name, error in errors.items() if np.isfinite(error)}


def better_forecast(found: Fit, errors: Mapping[str, float]) -> str | None:
    """A sentence if a form or rival forecasts better than the law of `found` by more than BETTER; else None."""
    if found.holdout is None or not errors:
        return None
    own, best = found.holdout.rmse, min(errors, key=lambda name: errors[name])
    if errors[best] >= own * (1 - BETTER):
        return None
    advice = f"try --law {best}" if best in FORMS else "a law has to beat that"
    return (
        f"{best} forecasts the {counted(len(found.holdout.ids), 'held-out run')} better than {found.law.form}: RMSE "
        f"{errors[best]:.4f} against {own:.4f} nats; {advice} (chosen by a forecast, it is no longer a forecast)"
    )


def _once(runs: Runs) -> Runs:
    return runs if runs.repeated.all() else runs.at(~runs.repeated)


def _forms(runs: Runs) -> list[str]:
    """The forms of which a knob varies, and those without."""
    varies = {name for name in FIELDS if len(np.unique(getattr(runs.points, name))) > 1}
    return [name for name, form in FORMS.items() if not form.columns or varies & {*form.columns}]


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
